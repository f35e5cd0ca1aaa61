"""Rows of Arrow tables as records: what Parquet files and folders of `datasets` have in common.

Columns: `conversations` or `messages`; `image`, `images`, `video`, `videos`, each cell nothing, a path, bytes, a struct
{bytes, path}, or a list of them; and those of `TEXTS`, of any type: what JSON has no form for becomes text. Others are
passed over, but for those that may hold media under another name: of these a record says so, so that one that has lost
its own is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llava_train.records.fields import RECORD_KEYS
from llava_train.records.lost_media import names_media
from llava_train.records.media_file import PackedFile
from llava_train.records.readers.reader import Raw, made
from llava_train.records.record import BadRecord, columns_passed_over
from llava_train.records.tables import is_second

TURNS = ("conversations", "messages")
MEDIA = {"image": "image", "images": "image", "video": "video", "videos": "video"}  # columns to keys of a record
TEXTS = ("id", "data_source", "width", "height", "answers", "choices", "type", "prompt", *RECORD_KEYS)
KNOWN_COLUMNS = (*TURNS, *MEDIA, *TEXTS)
NUM_ROWS = 64  # that are held at a time, with their media


class BytesInFile(NamedTuple):
    """Bytes that lie in a file as they are."""

    path: Path
    offset: int
    size: int


Locate = Callable[[int, int], BytesInFile | None]  # of an address and a size in memory


def chosen_columns(schema: pa.Schema) -> list[str]:
    """Those that make a record. Raises ValueError where there are no conversations."""
    if not any(name in schema.names for name in TURNS):
        raise ValueError(f"has no column {' or '.join(TURNS)}; found: {', '.join(schema.names)}")
    if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
        raise ValueError(f"column {twice} stands twice: rename or drop one of them")
    more = [name for name in schema.names if name not in KNOWN_COLUMNS and is_second(name)]
    if more and (first := next((name for name in schema.names if name in MEDIA), None)):
        raise ValueError(f"columns {first} and {', '.join(more)} each hold media of a row; make them one list, {first}")
    return [field.name for field in schema if field.name in KNOWN_COLUMNS or _may_hold_media(field)]


def unread_columns(schema: pa.Schema) -> str:
    """Those that no record is made of, in words; empty where there are none. Raises ValueError as `chosen_columns`."""
    chosen = {name for name in chosen_columns(schema) if name in KNOWN_COLUMNS}
    return columns_passed_over([name for name in schema.names if name not in chosen])


def _may_hold_media(field: pa.Field) -> bool:
    return names_media(field.name) or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)


def records(batch: pa.RecordBatch, first: int, locate: Locate = lambda *_: None) -> Iterator[Raw]:
    """One per row. `first`: number of the first row, for names. Media go as blobs where `locate` finds no place."""
    columns = {
        name: _texts(batch.column(name)) if name in TEXTS else _values(batch.column(name), locate)
        for name in chosen_columns(batch.schema)
    }
    kinds = {MEDIA[name] for name in columns if name in MEDIA}
    for i in range(batch.num_rows):
        row = {name: values[i] for name, values in columns.items() if values[i] is not None}
        yield _record(row, f"row {first + i}", kinds)


def drawn_rows(
    batches: Iterable[pa.RecordBatch], first: int, wanted: Sequence[int], locate: Locate = lambda *_: None
) -> Iterator[tuple[str, Raw]]:
    """Those at the positions `wanted`, ascending. `first`: position of the first row."""
    waiting = list(wanted)
    for batch in batches:
        stop = first + batch.num_rows
        while waiting and waiting[0] < stop:
            position = waiting.pop(0)
            yield str(position), next(records(batch.slice(position - first, 1), position, locate))
        if not waiting:
            return
        first = stop


def _texts(array: pa.Array) -> list:
    """As values of JSON; what it has no form for as text."""
    if pa.types.is_temporal(array.type) and not pa.types.is_duration(array.type):
        array = array.cast(pa.string())  # Python's own have no nanoseconds
    return [_as_json(value) for value in array.to_pylist()]


def _as_json(value: Any) -> Any:
    """Bytes as the text that they are, else in hexadecimal digits."""
    if isinstance(value, list):
        return [_as_json(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _as_json(entry) for key, entry in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _values(array: pa.Array, locate: Locate) -> list:
    """As Python values; bytes that lie in a file as a `BytesInFile`."""
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        ends = array.offsets.to_pylist()
        flat, valid = _values(array.values.slice(ends[0], ends[-1] - ends[0]), locate), array.is_valid().to_pylist()
        return [
            flat[start - ends[0] : end - ends[0]] if there else None
            for start, end, there in zip(ends, ends[1:], valid, strict=False)
        ]
    if pa.types.is_struct(array.type):
        fields = {field.name: _values(array.field(i), locate) for i, field in enumerate(array.type)}
        valid = array.is_valid().to_pylist()
        return [{name: flat[i] for name, flat in fields.items()} if valid[i] else None for i in range(len(array))]
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return _contents(array, locate)
    return array.to_pylist()


def _contents(array: pa.Array, locate: Locate) -> list[BytesInFile | bytes | None]:
    _, offsets, data = array.buffers()
    kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    ends = np.frombuffer(offsets, kind)[array.offset : array.offset + len(array) + 1].tolist()
    valid = array.is_valid().to_pylist()
    return [
        (locate(data.address + start, end - start) or data[start:end].to_pybytes()) if there else None
        for start, end, there in zip(ends, ends[1:], valid, strict=False)
    ]


def _record(row: dict[str, Any], name: str, kinds: Collection[str]) -> Raw:
    """kinds: those that have a column."""
    media: dict[str, list] = {"image": [], "video": []}
    try:
        for key in TURNS:
            if key in row:
                row[key] = _without_nulls(row[key], media)
        for key in [key for key in row if key in MEDIA]:
            value = row.pop(key)
            media[MEDIA[key]] += value if isinstance(value, list) else [value]
        blobs: list[bytes] = []
        found = {kind: [_medium(value, f"{kind} of {name}", blobs) for value in media[kind]] for kind in media}
    except BadRecord as error:
        return Raw(b"", bad=f"{name}: {error}")
    row = {key: value if key in KNOWN_COLUMNS else _described(value) for key, value in row.items()}
    for kind, entries in found.items():
        if kind in kinds or entries:
            row[kind] = [value for value in entries if value]
    return made(row, tuple(blobs))


def _described(value: Any) -> Any:
    """A cell of a column that is not known: of contents their size alone."""
    if isinstance(value, list):
        return [_described(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _described(entry) for key, entry in value.items()}
    if isinstance(value, bytes | BytesInFile):
        return {"bytes": value.size if isinstance(value, BytesInFile) else len(value)}
    return value if isinstance(value, str) else None


def _without_nulls(turns: Any, media: dict[str, list]) -> Any:
    """A struct has all keys in all rows. Media that typed parts hold themselves are moved to `media`."""
    if isinstance(turns, list):
        return [_without_nulls(turn, media) for turn in turns]
    if isinstance(turns, bytes | BytesInFile):
        return _decoded(turns)
    if not isinstance(turns, dict):
        return turns
    for kind in media:
        if isinstance(turns.get(kind), dict | bytes | BytesInFile):
            media[kind].append(turns.pop(kind))
    return {key: _without_nulls(value, media) for key, value in turns.items() if value is not None}


def _decoded(text: bytes | BytesInFile) -> str:
    """Of a column of texts that is stored as bytes."""
    if isinstance(text, BytesInFile):
        text = PackedFile(*text, "text").read()
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(f"a text is not UTF-8 (byte {error.start})") from error


def _medium(value: Any, name: str, blobs: list[bytes]) -> str | dict[str, Any] | None:
    """A medium as in `Raw`; a path as it is; None for none."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is None or isinstance(content, str):
        return content or path
    if isinstance(content, bytes):
        blobs.append(content)
        return {"blob": len(blobs) - 1, "name": path or name}
    if isinstance(content, BytesInFile):
        return {**content._asdict(), "path": str(content.path), "name": path or name}
    raise BadRecord(f"{name} is a {type(content).__name__}; media are paths, bytes, or structs of both")
