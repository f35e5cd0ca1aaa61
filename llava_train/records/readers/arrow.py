"""Folders that Hugging Face `datasets` saved: Arrow streams, memory-mapped. Images and videos are read in place."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from llava_train.records.readers.columns import (
    NUM_ROWS,
    BytesInFile,
    chosen_columns,
    drawn_rows,
    records,
    unread_columns,
)
from llava_train.records.readers.reader import Raw, Reader, drawn_positions

END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream


class Arrow(Reader):
    def passed_over(self) -> str:
        with pa.ipc.open_stream(_mapped(self.files()[0])) as stream:
            return unread_columns(stream.schema)

    def count(self) -> int:
        return sum(batch.num_rows for path in self.files() for batch in pa.ipc.open_stream(_mapped(path)))

    def drawn(self, first: int, count: int, rng: random.Random) -> Iterator[tuple[str, Raw]]:
        start, chosen = 0, drawn_positions(first, self.count(), count, rng)
        for batch, locate in self._batches():
            stop = start + batch.num_rows
            yield from drawn_rows([batch], start, [p for p in chosen if start <= p < stop], locate)
            start = stop

    def __iter__(self) -> Iterator[Raw]:
        first = 0
        for batch, locate in self._batches():
            for start in range(0, batch.num_rows, NUM_ROWS):
                yield from records(batch.slice(start, NUM_ROWS), first + start, locate)
            first += batch.num_rows

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, _Locate]]:
        for path in self.files():
            mapped = _mapped(path)
            locate = _Locate(Path(os.path.abspath(path)), mapped.address, mapped.size)
            with pa.ipc.open_stream(mapped) as stream:
                columns = chosen_columns(stream.schema)
                for batch in stream:
                    yield batch.select(columns), locate


def _mapped(path: Path) -> pa.Buffer:
    """Raises ValueError where the end is missing: Arrow itself reads what is there."""
    with pa.memory_map(str(path)) as file:
        mapped = file.read_buffer()
    if mapped[-len(END) :].to_pybytes() != END:
        raise ValueError(f"{path.name} is cut short")
    return mapped


@dataclass(frozen=True)
class _Locate:
    """Bytes of a batch that was not unpacked lie in the mapped file."""

    path: Path
    address: int
    mapped: int

    def __call__(self, address: int, size: int) -> BytesInFile | None:
        offset = address - self.address
        return BytesInFile(self.path, offset, size) if 0 <= offset <= self.mapped - size else None
