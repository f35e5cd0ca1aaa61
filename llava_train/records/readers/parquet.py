"""Parquet: a file, or a folder of shards, read a few rows at a time; images and videos inside are blobs."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pyarrow.parquet as pq

from llava_train.records.readers.columns import NUM_ROWS, chosen_columns, drawn_rows, records, unread_columns
from llava_train.records.readers.reader import Raw, Reader, drawn_positions


class Parquet(Reader):
    def passed_over(self) -> str:
        return "; ".join(filter(None, (super().passed_over(), unread_columns(pq.read_schema(self.files()[0])))))

    def count(self) -> int:
        return sum(pq.read_metadata(file).num_rows for file in self.files())

    def drawn(self, first: int, count: int, rng: random.Random) -> Iterator[tuple[str, Raw]]:
        """Row groups are read as far as a row is wanted."""
        start = 0
        chosen = drawn_positions(first, self.count(), count, rng)
        for path in self.files():
            with pq.ParquetFile(path, memory_map=True) as file:
                columns = chosen_columns(file.schema_arrow)
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    wanted = [position for position in chosen if start <= position < stop]
                    batches = file.iter_batches(NUM_ROWS, row_groups=[group], columns=columns) if wanted else ()
                    yield from drawn_rows(batches, start, wanted)
                    start = stop

    def __iter__(self) -> Iterator[Raw]:
        first = 0
        for path in self.files():
            with pq.ParquetFile(path, memory_map=True) as file:
                columns = chosen_columns(file.schema_arrow)
                for batch in file.iter_batches(NUM_ROWS, columns=columns):
                    yield from records(batch, first)
                    first += batch.num_rows
