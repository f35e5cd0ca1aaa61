"""The index of a source on disk: what every sample's length, tiles and cost follow from, without decoding.

A folder, made by `indexing.py`: `rows.arrow`, memory-mapped, one row a record; of records that are not JSON in their
own file `records.jsonl` and `media.bin`; `source.json`, which says of what. Geometry, limits and sampling are not in
it: see `view.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from llava_train.data.media.sample_media import MediumSize
from llava_train.data.samples.held_out import Pictures, same_content
from llava_train.data.samples.parse import record_name
from llava_train.records.readers.open import Raw, record_of
from llava_train.records.tags import MEDIUM_KINDS
from llava_train.shared.errors import DataError
from llava_train.shared.json_files import read_json

REFUSED = -1  # text tokens of a record that makes no sample
ROWS, RECORDS, MEDIA, ABOUT = "rows.arrow", "records.jsonl", "media.bin", "source.json"
PICTURES = "pictures.npz"  # which media are the same, where samples have been held out: see `same_media.py`

MEDIUM = pa.struct(
    [("kind", pa.int8()), ("height", pa.int32()), ("width", pa.int32()), ("frames", pa.int32()), ("fps", pa.float64())]
)
CUT = pa.struct([("text_tokens", pa.int32()), ("supervised", pa.int32())])
SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),  # of the record in its file, with its size in bytes
        ("size", pa.int32()),
        ("text_tokens", pa.int32()),
        ("supervised", pa.int32()),
        ("note", pa.int8()),  # what is said of a sample that is not refused: see `sample_notes.py`
        ("digest", pa.uint64()),  # of the whole record: see `record_identity.py`
        ("media", pa.list_(MEDIUM)),  # in reading order
        ("cuts", pa.list_(CUT)),  # shorter forms of the sample, shortest first: see Encoder.measure
        ("reason", pa.string()),  # why it is refused, with the detail; empty where it is not
        ("detail", pa.string()),
    ]
)


class Index:
    """The index of one source, its columns as arrays on the mapped file. Picklable; each process maps anew."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._records: IO[bytes] | None = None
        self._open()

    def _open(self) -> None:
        about = read_json(self.folder / ABOUT)
        for name in (RECORDS, MEDIA):
            if (size := (self.folder / name).stat().st_size) != about["file_sizes"][name]:
                raise ValueError(f"{name} has {size} bytes")
        with pa.memory_map(str(self.folder / ROWS)) as file:
            rows = pa.ipc.open_file(file)
            batch = rows.get_batch(0) if rows.num_record_batches else pa.RecordBatch.from_pylist([], SCHEMA)
        columns: dict[str, Any] = {name: batch.column(name) for name in SCHEMA.names}
        self.offsets, self.sizes, self.text_tokens, self.supervised, self.notes, self.digests = (
            columns[name].to_numpy() for name in ("offset", "size", "text_tokens", "supervised", "note", "digest")
        )
        self.media_starts, self.media = _flat(columns["media"])  # int32 [records + 1] into arrays by field
        self.cut_starts, self.cuts = _flat(columns["cuts"])
        self._reasons, self._details = columns["reason"], columns["detail"]
        self._file = about["records"]

    def __len__(self) -> int:
        return len(self.offsets)

    def record(self, position: int) -> Raw:
        if self._records is None:
            self._records = (self.folder / self._file).open("rb")
        offset = int(self.offsets[position])
        content = os.pread(self._records.fileno(), int(self.sizes[position]), offset)
        return Raw(content, -1 if self._file == RECORDS else offset, bad="" if content else "no record")

    def media_of(self, position: int) -> list[MediumSize]:
        start, stop = self.media_starts[position : position + 2]
        fields = [self.media[name][start:stop].tolist() for name in MediumSize._fields]
        return [MediumSize(MEDIUM_KINDS[kind], *others) for kind, *others in zip(*fields, strict=True)]

    def refusal(self, position: int, source: str) -> DataError | None:
        """Why a record makes no sample, whatever the stage; None where it makes one."""
        if self.text_tokens[position] != REFUSED:
            return None
        name = record_name(record_of(self.record(position)), position)
        return DataError(source, name, self._reasons[position].as_py(), self._details[position].as_py())

    def refused(self, reasons: Sequence[str]) -> list[tuple[int, str]]:
        """(position, reason) of the records that are refused for one of these reasons."""
        positions = np.flatnonzero(self.text_tokens == REFUSED)
        found = self._reasons.take(pa.array(positions)).to_pylist()
        return [(int(p), reason) for p, reason in zip(positions, found, strict=True) if reason in reasons]

    def stamp(self) -> list[int]:
        """Of the rows on disk; another when some were made anew."""
        about = (self.folder / ROWS).stat()
        return [about.st_size, about.st_mtime_ns]

    def pictures(self) -> Pictures:
        """Raises OSError, ValueError, KeyError, EOFError or BadZipFile where those of these rows are not there."""
        with np.load(self.folder / PICTURES) as found:
            if found["rows"].tolist() != self.stamp():
                raise ValueError(f"{PICTURES} is of other rows")
            stored = {name: found[name] for name in ("text", "key", "place", "size", "digest")}
        sides = {name: self.media[name] for name in ("height", "width")}
        return Pictures(starts=self.media_starts, **stored, **sides)

    @property
    def content(self) -> np.ndarray:
        """uint64 [records], equal for samples that go together; of this source alone. Raises as `pictures` does."""
        return same_content([self.pictures()])[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _flat(lists: pa.ListArray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    values = lists.values
    fields = {field.name: values.field(field.name).to_numpy() for field in values.type}
    return lists.offsets.to_numpy() if len(lists) else np.zeros(1, dtype=np.int32), fields
