"""Files and folders written whole or not at all, and files of lines read without one that is being written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from llava_train.shared.json_files import to_json

PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path, mode: Literal["w", "wb"] = "w", several: bool = False) -> Iterator[IO[Any]]:
    """A file to write, which is flushed to disk and takes the place of `path` at the end; removed on an error.

    A reader sees the old content or the new, never a part. several: processes may write it at the same time.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}" if several else path.name + PARTIAL)
    try:
        with beside.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """As `whole_file`."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """As `write_whole`."""
    write_whole(path, to_json(content, indent=1, ensure_ascii=False) + "\n")


def whole_lines(path: Path) -> list[bytes]:
    """Of a JSONL file, those that end; none where it is absent. Of bytes: a text of JSON may hold U+2028 and others by
    which `str.splitlines` ends a line."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write to, which is flushed and takes its place at the end; removed on an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    writing, replaced = (out.with_name(f".{out.name}.{word}") for word in ("writing", "replaced"))
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    try:
        yield writing
    except BaseException:
        shutil.rmtree(writing)
        raise
    flush_tree(writing)
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    writing.rename(out)
    flush(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def flush_tree(folder: Path) -> None:
    """Forces every file below `folder`, and the folders' own entries, to disk."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
