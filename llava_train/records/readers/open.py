"""Data sets on disk as records, one module per format; `Sample`s are made of them in `llava_train.data.samples.parse`.

Enters: a file or folder, with the split behind it (`FOLDER@train`). Leaves: its records in order, as bytes of JSON.
A new format is a module with a `Reader`, a line in `READERS` and its kind in `llava_train.records.file_formats`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llava_train.records.file_formats import FileFormat, format_of, split_of
from llava_train.records.readers.arrow import Arrow
from llava_train.records.readers.json_lines import JsonLines
from llava_train.records.readers.json_list import JsonList
from llava_train.records.readers.parquet import Parquet
from llava_train.records.readers.reader import Raw, Reader, record_of
from llava_train.records.readers.tables import Plain
from llava_train.records.readers.tars import Tars
from llava_train.shared.errors import DataError

__all__ = ["Raw", "RecordSource", "open_source", "record_of"]

T = TypeVar("T")

READERS: dict[FileFormat, Callable[[Path, str], Reader]] = {
    "json": JsonList,
    "jsonl": JsonLines,
    "table": Plain,
    "parquet": Parquet,
    "arrow": Arrow,
    "tar": Tars,
    "pictures": Plain,
}


@dataclass(frozen=True)
class RecordSource:
    """A data set on disk. `name` stands in its errors. Picklable; read again by each `iter`."""

    name: str
    path: Path
    split: str

    def files(self) -> list[Path]:
        """What its records depend on, for a fingerprint. Raises DataError."""
        return self._of_this_source(lambda: self._reader().files())

    def count(self) -> int:
        """Number of records, bad ones among them; parses them only where nothing else tells. Raises DataError."""
        return self._of_this_source(lambda: self._reader().count())

    def passed_over(self) -> str:
        """What is not read of it, in words, with its name; empty where all is. Raises DataError."""
        told = self._of_this_source(lambda: self._reader().passed_over())
        return f"{self.name}: passed over {told}" if told else ""

    def drawn(self, first: int, count: int, rng: random.Random) -> Iterator[tuple[str, Raw]] | None:
        """Up to `count` of the records behind the first, each with where it stands, as far as the format can seek; None
        where it cannot. Raises DataError."""
        if (found := self._of_this_source(lambda: self._reader().drawn(first, count, rng))) is None:
            return None
        return iter(lambda: self._of_this_source(lambda: next(found, None)), None)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Raw]:
        """Records in order. Raises DataError, maybe after some records, where the rest cannot be read."""
        records = iter(self._of_this_source(self._reader))
        while (raw := self._of_this_source(lambda: next(records, None))) is not None:
            yield raw

    def _reader(self) -> Reader:
        return READERS[format_of(self.path, self.split)](self.path, self.split)

    def _of_this_source(self, act: Callable[[], T]) -> T:
        """What `act` returns; its errors as DataError with the name of the source."""
        try:
            return act()
        except (OSError, ValueError) as error:
            raise DataError(self.name, "-", "unreadable file", f"{self.path}: {error}") from error


def open_source(file: str | Path, name: str) -> RecordSource:
    """The data set of that file or folder; nothing is read yet."""
    return RecordSource(name, *split_of(file))
