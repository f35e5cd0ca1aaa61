"""Tables and folders of pictures, as `llava_train.records.tables` reads them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from llava_train.records.image_files import visible_files
from llava_train.records.readers.reader import Raw, Reader, drawn_positions, made
from llava_train.records.record import BadRecord
from llava_train.records.tables import read_plain, unread_words


class Plain(Reader):
    def files(self) -> list[Path]:
        """Of a folder all that is in it: its names are answers."""
        if not self.path.is_dir():
            return [self.path]
        return [file for name in visible_files(self.path) if (file := self.path / name).is_file()]

    def passed_over(self) -> str:
        return unread_words(self.path)

    def count(self) -> int:
        return len(read_plain(self.path, self.split))

    def drawn(self, first: int, count: int, rng: random.Random) -> Iterator[tuple[str, Raw]]:
        """A table is read as a whole anyway."""
        raws = list(self)
        return ((str(position), raws[position]) for position in drawn_positions(first, len(raws), count, rng))

    def __iter__(self) -> Iterator[Raw]:
        for record in read_plain(self.path, self.split):
            yield Raw(b"", bad=str(record)) if isinstance(record, BadRecord) else made(record)
