"""What identifies the records of a source, wherever its files lie and in whichever format they are written.

Enters: records as bytes. Leaves: a digest of each, kept in the index, and one identity of them all in their order, kept
in checkpoints. Files that records name by path are not read; media inside of a table or an Arrow file are.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from llava_train.records.readers.open import Raw, RecordSource

SourceIdentity = dict[str, Any]  # of a source, for JSON: `identity`, `records` (their number), `stamps` of its files


def digest(raw: Raw) -> int:
    """64 bits of a record: equal for equal keys and values, whatever their order and the white space between them."""
    try:
        record = json.loads(raw.content)
        if raw.offset < 0:  # a reader made it, so media within files are known by where they stand
            record = _without_places(record, raw.blobs)
        content = json.dumps(record, sort_keys=True).encode()
    except (ValueError, RecursionError):
        content = raw.content or raw.bad.encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def identity(digests: np.ndarray) -> str:
    """Of all records of a source in their order. digests: uint64 [records]."""
    return hashlib.sha256(digests.astype("<u8").tobytes()).hexdigest()[:16]


def identify(source: RecordSource, digests: np.ndarray) -> SourceIdentity:
    """What a checkpoint keeps of a source. Raises DataError where its files are gone."""
    return {"identity": identity(digests), "records": len(digests), "stamps": _stamps(source)}


def identify_again(
    sources: Mapping[str, RecordSource], before: Mapping[str, SourceIdentity]
) -> dict[str, SourceIdentity]:
    """What is known of sources now; one is read through only if its files are not those of before. Raises DataError."""
    before, now = _renamed(before, sources), {}
    for name, source in sources.items():
        if name in before and before[name]["stamps"] == _stamps(source):
            now[name] = before[name]
        else:
            now[name] = identify(source, np.array([digest(raw) for raw in source], np.uint64))
    return now


def changed_records(before: Mapping[str, SourceIdentity], now: Mapping[str, SourceIdentity]) -> list[str]:
    """A line for each source whose records are others than before. A single source may have another name."""
    before, lines = _renamed(before, now), []
    for name in dict.fromkeys([*before, *now]):
        then, current = before.get(name), now.get(name)
        if then is None or current is None:
            lines.append(f"source {name}: {'not there then' if current else 'not there now'}")
        elif then["identity"] != current["identity"]:
            counts = f"{then['records']:,} records then, {current['records']:,} now"
            lines.append(f"source {name}: its records have changed since the checkpoint ({counts})")
    return lines


def _renamed(before: Mapping[str, SourceIdentity], now: Mapping[str, Any]) -> Mapping[str, SourceIdentity]:
    """A single source is called after its file, which may have another name by now."""
    return dict(zip(now, before.values(), strict=True)) if len(before) == len(now) == 1 else before


def _without_places(value: Any, blobs: tuple[bytes, ...]) -> Any:
    """Media within files by name, size and, where a reader took them out, checksum."""
    if isinstance(value, list):
        return [_without_places(entry, blobs) for entry in value]
    if not isinstance(value, dict):
        return value
    if "blob" in value:
        blob = blobs[value["blob"]]
        return {"name": value["name"], "size": len(blob), "sum": zlib.crc32(blob)}
    if {"path", "offset", "size"} <= value.keys():
        return {key: value[key] for key in ("name", "size", "sum") if key in value}
    return {key: _without_places(entry, blobs) for key, entry in value.items()}


def _stamps(source: RecordSource) -> list[list[int]]:
    stats = [file.stat() for file in source.files()]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
