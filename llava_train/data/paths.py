"""Where a record's path leads: below its root, unless the user allows more."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from llava_train.config.plain import BadRecord

_DRIVE = re.compile(r"[A-Za-z]:/|//")
REMEDY = "move the media below data.root, or set data.allow_outside_root=true"


def inside(root: Path, entry: str, allowed: Sequence[Path] | None) -> Path:
    """The path of an image or video, `\\` read as `/`. It must stay within one of `allowed`, as it is written: links
    that lie there are followed, wherever they lead. None: it may lead anywhere.

    Worked case, root /data/a, allowed (/data,): `../b/1.png` -> /data/b/1.png; `../../1.png` and `/1.png` are refused.
    Raises BadRecord.
    """
    told = ascii(entry)
    if "\0" in entry or entry != entry.encode(errors="replace").decode():
        raise BadRecord(f"path {told} holds characters that no path has")
    path = entry.replace("\\", "/")
    if os.path.normpath(path or ".") == ".":
        raise BadRecord(f"path {told} names no file")
    if allowed is None:
        return root / path
    written = os.path.normpath(root / path)
    folders = [os.path.abspath(folder) for folder in allowed]
    if _DRIVE.match(path) or not any(_is_below(os.path.abspath(written), folder) for folder in folders):
        raise BadRecord(f"path {told} leads outside of {' and '.join(folders)}: {REMEDY}")
    return Path(written)


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
