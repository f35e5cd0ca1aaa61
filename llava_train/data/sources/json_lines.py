"""JSONL: one record a line, in place; blank lines are passed over, a bad one is one bad record."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator

from llava_train.data.sources.raw import Raw, Reader


class JsonLines(Reader):
    def __iter__(self) -> Iterator[Raw]:
        with self.path.open("rb") as lines:
            start = len(BOM_UTF8) if lines.read(len(BOM_UTF8)) == BOM_UTF8 else 0
            lines.seek(start)
            for line in lines:
                if content := line.strip():
                    yield Raw(content, start + line.index(content))
                start += len(line)
