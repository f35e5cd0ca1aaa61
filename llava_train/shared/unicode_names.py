"""Names of files in the forms of Unicode: `é` is one character or two, looks the same, and names different files."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def other_form(path: Path) -> str:
    """For messages, of a path where no file is: that a folder or a pipe is there, or the path that differs from it in
    the form of Unicode alone; "" where neither is."""
    found = Path(path.anchor)
    for name in path.parts[len(found.parts) :]:
        forms = dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))
        there = next((form for form in forms if os.path.exists(found / form)), None)
        if there is None:
            return ""
        found = found / there
    if found == path:
        return "; it is a folder" if path.is_dir() else "; it is a pipe, socket or device"
    return f"; there is {str(found)!a}, which is {str(path)!a} in another form of Unicode: rename it"
