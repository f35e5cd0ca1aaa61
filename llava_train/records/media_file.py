"""The file of an image or video, wherever it lies: a file of its own, a part of another, or bytes in memory."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llava_train.shared.unicode_names import other_form


class PackedFile(NamedTuple):
    """An image or video within another file: `size` bytes of `path` from `offset`, or in memory where `content` is."""

    path: Path
    offset: int
    size: int
    name: str  # for messages: what it is called there
    content: bytes | None = None

    def __str__(self) -> str:
        return f"{self.name} in {self.path}"

    def read(self) -> bytes:
        """Raises OSError."""
        if self.content is not None:
            return self.content
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


MediaFile = Path | PackedFile


def open_medium(file: MediaFile) -> BinaryIO:
    """Reads and seeks within the medium alone. Raises FileNotFoundError (no regular file there), OSError."""
    path = file.path if isinstance(file, PackedFile) else file
    if isinstance(file, PackedFile) and file.content is not None:
        return io.BytesIO(file.content)
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{file}: no such file{other_form(path)}")
    if not isinstance(file, PackedFile):
        return path.open("rb")
    if path.stat().st_size < file.offset + file.size:
        raise OSError(f"{path} ends before it does")
    return io.BufferedReader(_Slice(path, file.offset, file.size))


class _Slice(io.RawIOBase):
    """`size` bytes of `path` from `offset`, read as they are asked for."""

    def __init__(self, path: Path, offset: int, size: int):
        self._descriptor = os.open(path, os.O_RDONLY)
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        wanted = min(len(buffer), max(0, self._size - self._position))
        content = os.pread(self._descriptor, wanted, self._offset + self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("sought before the beginning")
        self._position = start + offset
        return self._position

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
