"""Where a record's path leads: below its root, unless the user allows more."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from llava_train.records.record import BadRecord

_DRIVE = re.compile(r"[A-Za-z]:/|//")
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{64,}={0,2}")  # PNG, JPEG, GIF, WebP
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
NAME_BYTES, PATH_BYTES = 255, 4095  # the most that file systems of Linux hold in one name, and in a path
SHOWN = 60  # characters of an entry that a message repeats
REMEDY = "move the media below data.root, or set data.allow_outside_root=true"


def inside(root: Path, entry: str, allowed: Sequence[Path] | None) -> Path:
    """The path of an image or video, `\\` read as `/`. It must stay within one of `allowed`, as it is written: links
    that lie there are followed, wherever they lead. None: it may lead anywhere.

    Worked case, root /data/a, allowed (/data,): `../b/1.png` -> /data/b/1.png; `../../1.png` and `/1.png` are refused.
    Raises BadRecord, also for what no file can be called, such as a picture in base64 or its caption, and for an URL.
    """
    told = in_short(entry)
    if "\0" in entry or entry != entry.encode(errors="replace").decode():
        raise BadRecord(f"path {told} holds characters that no path has")
    path = entry.replace("\\", "/")
    if os.path.normpath(path or ".") == ".":
        raise BadRecord(f"path {told} names no file")
    if entry.startswith("data:") or _BASE64.fullmatch(entry):
        raise BadRecord(f"{told} is the medium itself: save it as a file and give its path, or its bytes in Parquet")
    if url := _URL.match(entry):
        remedy = "give its path alone" if url[1].lower() == "file" else "download it, and give its path"
        raise BadRecord(f"{told} is an URL: {remedy}")
    names = [os.fsencode(name) for name in os.path.join(root, path).split("/")]
    if max(map(len, names)) > NAME_BYTES or len(b"/".join(names)) > PATH_BYTES:
        raise BadRecord(f"path {told} is longer than any file's: give the path of a file, not what it holds")
    if allowed is None:
        return root / path
    written = os.path.normpath(root / path)
    folders = [os.path.abspath(folder) for folder in allowed]
    if _DRIVE.match(path) or not any(_is_below(os.path.abspath(written), folder) for folder in folders):
        raise BadRecord(f"path {told} leads outside of {' and '.join(folders)}: {REMEDY}")
    return Path(written)


def in_short(entry: str) -> str:
    """An entry as messages repeat it: on one line, in ASCII, the beginning of a long one."""
    return ascii(entry) if len(entry) <= SHOWN else f"{entry[:SHOWN]!a}... ({len(entry):,} characters)"


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
