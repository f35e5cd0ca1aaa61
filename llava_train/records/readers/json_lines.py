"""JSONL: one record a line, blank lines passed over, a bad one is one bad record. A file is read in place; of a folder
of them, which is several, records are copied."""

from __future__ import annotations

import random
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from llava_train.records.readers.reader import Raw, Reader, made, record_of
from llava_train.records.record import BadRecord


class JsonLines(Reader):
    def count(self) -> int:
        return sum(1 for path in self.files() for _ in _lines(path))

    def drawn(self, first: int, count: int, rng: random.Random) -> Iterator[tuple[str, Raw]] | None:
        return super().drawn(first, count, rng) or self._drawn_by_bytes(count, rng)

    def _drawn_by_bytes(self, count: int, rng: random.Random) -> Iterator[tuple[str, Raw]]:
        """Of a large file each line that follows a drawn byte."""
        files = self.files()
        for path in rng.choices(files, [path.stat().st_size for path in files], k=count):
            with path.open("rb") as file:
                offset = file.seek(rng.randrange(path.stat().st_size))
                file.readline()
                if content := file.readline().strip():
                    yield f"behind byte {offset} of {path.name}", Raw(content, offset)

    def __iter__(self) -> Iterator[Raw]:
        for path in self.files():
            for raw in _lines(path):
                yield raw if path == self.path else _copied(raw, path)


def _lines(path: Path) -> Iterator[Raw]:
    with path.open("rb") as lines:
        start = len(BOM_UTF8) if lines.read(len(BOM_UTF8)) == BOM_UTF8 else 0
        lines.seek(start)
        for line in lines:
            if content := line.strip():
                yield Raw(content, start + line.index(content))
            start += len(line)


def _copied(raw: Raw, path: Path) -> Raw:
    """As a record that a reader made, in which only readers may say where media lie."""
    record = record_of(raw)
    if isinstance(record, BadRecord):
        return Raw(b"", bad=f"{path.name}, byte {raw.offset}: {record}")
    for kind in ("image", "video"):
        entries = record.get(kind) if isinstance(record, dict) else None
        if isinstance(entries, list) and any(isinstance(entry, dict) for entry in entries):
            return Raw(b"", bad=f"{path.name}, byte {raw.offset}: {kind!r} is neither a path nor a list of paths")
    return made(record)
