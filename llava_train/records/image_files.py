"""Which files of a folder are pictures: links are followed, hidden files never read, contents judge where names do not.

Enters: a folder. Leaves: its files in the order of their names, and what each is. Nothing is decoded.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
OTHER_IMAGES = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd")  # pictures that reading refuses by name
HEAD = 32  # bytes of a file that tell what it is
_BEGINNINGS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\xff\x0a",
    b"8BPS",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")  # of a file that begins with a box `ftyp`


class Sorted(NamedTuple):
    """Of a folder of pictures, relative to it: pictures, texts beside them, and what is passed over."""

    pictures: list[Path]
    texts: set[Path]
    others: list[Path]


def is_image(head: bytes, suffix: str) -> bool:
    """Whether a file is a picture, of a kind that can be read or not, by its suffix or else its first HEAD bytes."""
    if suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_IMAGES):
        return True
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4)  # reserved; a text may begin with these letters
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return head.startswith(_BEGINNINGS) or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)


def is_picture(file: Path) -> bool:
    """`is_image` of a file, which is opened only where its name does not tell.

    One that cannot be opened is taken for a picture, so that reading refuses it by name.
    """
    if is_image(b"", file.suffix):
        return True
    if file.suffix.lower() == ".txt" or not file.is_file():  # a pipe would be waited for
        return False
    try:
        with file.open("rb") as content:
            return is_image(content.read(HEAD), "")
    except OSError:
        return True


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder, relative to it, sorted; links are followed, a circle of them once. Raises OSError."""
    return sorted(_below(folder, Path(), (os.path.realpath(folder),)))


def visible_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these suffixes in a folder and in the folders that lie in it, relative to it, sorted. Raises OSError."""
    found = []
    for inner in (Path(), *(Path(name) for name in os.listdir(folder) if (folder / name).is_dir() and name[0] != ".")):
        with os.scandir(folder / inner) as entries:
            names = [
                entry.name for entry in entries if entry.name.lower().endswith(suffixes) and _leads_to(entry.is_file)
            ]
        found += [inner / name for name in names if name[0] != "."]
    return sorted(found)


def sorted_out(folder: Path) -> Sorted:
    """Raises OSError."""
    files = visible_files(folder)
    pictures = [file for file in files if is_picture(folder / file)]
    stems = {picture.with_suffix("") for picture in pictures}
    texts = {file for file in files if file.suffix.lower() == ".txt" and file.with_suffix("") in stems}
    used = {*pictures, *texts}
    return Sorted(pictures, texts, [file for file in files if file not in used])


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Of an entry of a folder; a link to itself leads nowhere, as one to nothing does."""
    try:
        return kind()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _below(root: Path, inner: Path, above: tuple[str, ...]) -> Iterator[Path]:
    with os.scandir(root / inner) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if not _leads_to(entry.is_dir):
            yield inner / entry.name
        elif (place := os.path.realpath(entry.path)) not in above:
            yield from _below(root, inner / entry.name, (*above, place))


def sorted_frames(folder: Path) -> tuple[list[Path], list[Path]]:
    """The frames of a folder in order, and what else lies in it; hidden files are neither."""
    there = sorted((file for file in folder.iterdir() if not file.name.startswith(".")), key=_natural)
    frames = {file: None for file in there if not file.is_dir() and is_picture(file)}
    return [*frames], [file for file in there if file not in frames]


def _natural(path: Path) -> list[str | int]:
    parts = re.split(r"(\d+)", path.name)  # text and digits in turn
    return [int(part) if at % 2 else part for at, part in enumerate(parts)]
