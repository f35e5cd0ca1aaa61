"""The Qwen2 tokenizer of the golden cases, with `<image>` and `<video>`; the places that media lie in."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llava_train.records.media_file import MediaFile, PackedFile
from llava_train.text.placeholders import prepare_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "golden" / "qwen2_tokenizer")
    prepare_tokenizer(tokenizer, 151646, 151647)
    return tokenizer


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
