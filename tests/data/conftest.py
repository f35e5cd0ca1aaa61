"""The places that media lie in."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_train.records.media_file import MediaFile, PackedFile


@pytest.fixture(params=["file", "slice", "memory"])
def placed(request, tmp_path):
    """Puts bytes where media may lie: a file of their own, between others in one file, or nowhere but in memory."""

    def place(name: str, content: bytes) -> MediaFile:
        if request.param == "memory":
            return PackedFile(Path(), 0, len(content), name, content)
        path = tmp_path / name
        path.write_bytes(content if request.param == "file" else b"before" + content + b"behind")
        return path if request.param == "file" else PackedFile(path, len(b"before"), len(content), name)

    return place
