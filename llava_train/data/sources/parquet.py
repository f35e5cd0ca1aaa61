"""Parquet: a file, or a folder of shards, read a few rows at a time; images and videos inside are blobs."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from llava_train.data.sources.columns import NUM_ROWS, chosen_columns, records, unread_columns
from llava_train.data.sources.raw import Raw, Reader


class Parquet(Reader):
    def passed_over(self) -> str:
        return "; ".join(filter(None, (super().passed_over(), unread_columns(pq.read_schema(self.files()[0])))))

    def count(self) -> int:
        return sum(pq.read_metadata(file).num_rows for file in self.files())

    def __iter__(self) -> Iterator[Raw]:
        first = 0
        for path in self.files():
            with pq.ParquetFile(path, memory_map=True) as file:
                columns = chosen_columns(file.schema_arrow)
                for batch in file.iter_batches(NUM_ROWS, columns=columns):
                    yield from records(batch, first)
                    first += batch.num_rows
