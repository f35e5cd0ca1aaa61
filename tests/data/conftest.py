"""The Qwen2 tokenizer of the golden cases, with `<image>` and `<video>`."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llava_train.family.onevision.tokens import prepare_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "golden" / "qwen2_tokenizer")
    prepare_tokenizer(tokenizer, 151646, 151647)
    return tokenizer
