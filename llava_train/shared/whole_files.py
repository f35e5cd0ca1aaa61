"""Small files written whole or not at all, and files of lines read without one that is being written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llava_train.shared.json_files import to_json

PARTIAL = ".partial"


def write_whole(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees the old text or the new, never a part."""
    beside = path.with_name(path.name + PARTIAL)
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """As `write_whole`."""
    write_whole(path, to_json(content, indent=1, ensure_ascii=False) + "\n")


def whole_lines(path: Path) -> list[bytes]:
    """Of a JSONL file, those that end; none where it is absent. Of bytes: a text of JSON may hold U+2028 and others by
    which `str.splitlines` ends a line."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]
