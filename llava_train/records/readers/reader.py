"""What readers of all formats give: one record as bytes of JSON, and how it becomes a record again."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_train.records.file_formats import COUNT_LIMIT, RECORD_SUFFIXES, shards
from llava_train.records.image_files import visible_below
from llava_train.records.media_file import PackedFile
from llava_train.records.record import BadRecord, files_passed_over


@dataclass(frozen=True)
class Raw:
    """One record. Its `image` and `video` may hold, beside paths, media within files, if it was made by a reader:
    {"path": FILE, "offset": N, "size": N, "name": TEXT}, or {"blob": N, "name": TEXT} for one of `blobs`."""

    content: bytes
    offset: int = -1  # where `content` stands in the source's file; -1 where a reader made it
    blobs: tuple[bytes, ...] = ()
    bad: str = ""  # why there is no record here; `content` is empty then


@dataclass(frozen=True)
class Reader(ABC):
    """One format. All methods raise OSError or ValueError."""

    path: Path
    split: str

    @abstractmethod
    def __iter__(self) -> Iterator[Raw]:
        """In order, streaming: memory does not grow with the file."""

    def files(self) -> list[Path]:
        return shards(self.path, self.split)

    def passed_over(self) -> str:
        """What is known not to be read, in words; empty where nothing is. Of a folder files of records, like these."""
        if not self.path.is_dir():
            return ""
        read = {*self.files()}
        others = [file for file in visible_below(self.path, RECORD_SUFFIXES) if self.path / file not in read]
        return files_passed_over("of records", others)

    def count(self) -> int:
        return sum(1 for _ in self)

    def drawn(self, first: int, count: int, rng: random.Random) -> Iterator[tuple[str, Raw]] | None:
        """Up to `count` of the records behind the first, each with where it stands; None where to find them would take
        reading a large file through."""
        if sum(file.stat().st_size for file in self.files()) > COUNT_LIMIT:
            return None
        chosen = set(drawn_positions(first, self.count(), count, rng))
        return ((str(position), raw) for position, raw in enumerate(self) if position in chosen)


def drawn_positions(first: int, total: int, count: int, rng: random.Random) -> list[int]:
    """Of those from `first` on, in order."""
    behind = range(first, total)
    return sorted(rng.sample(behind, min(count, len(behind))))


def made(record: dict[str, Any], blobs: tuple[bytes, ...] = ()) -> Raw:
    """A record that stands in no file as it is."""
    return Raw(json.dumps(record).encode(), blobs=blobs)


def record_of(raw: Raw) -> Any:
    """The record, or a BadRecord. Media within files are `PackedFile`s, of readers' own records alone."""
    if raw.bad:
        return BadRecord(raw.bad)
    try:
        record = json.loads(raw.content.decode("utf-8"))
        if b"\\ud" in raw.content or b"\\uD" in raw.content:
            json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        return BadRecord(f"no JSON: {error}")
    if raw.offset < 0 and isinstance(record, dict):
        for kind in ("image", "video"):
            if isinstance(values := record.get(kind), list):
                record[kind] = [_packed(value, raw.blobs) if isinstance(value, dict) else value for value in values]
    return record


def _packed(value: dict[str, Any], blobs: tuple[bytes, ...]) -> PackedFile:
    if "blob" in value:
        content = blobs[value["blob"]]
        return PackedFile(Path(value["name"]), 0, len(content), value["name"], content)
    return PackedFile(Path(value["path"]), value["offset"], value["size"], value["name"])
