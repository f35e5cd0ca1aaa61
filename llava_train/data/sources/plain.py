"""Tables and folders of pictures, as `llava_train.config.plain` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava_train.config.plain import BadRecord, read_plain
from llava_train.data.sources.raw import Raw, Reader, made


class Plain(Reader):
    def files(self) -> list[Path]:
        """Of a folder all that is in it: its names are answers."""
        if not self.path.is_dir():
            return [self.path]
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    def count(self) -> int:
        return len(read_plain(self.path, self.split))

    def __iter__(self) -> Iterator[Raw]:
        for record in read_plain(self.path, self.split):
            yield Raw(b"", bad=str(record)) if isinstance(record, BadRecord) else made(record)
