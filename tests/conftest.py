"""For the tests of any room: worker programs on several ranks, and the Qwen2 tokenizer of the golden cases."""

import subprocess
from pathlib import Path

import pytest
import runs


@pytest.fixture(scope="session")
def torchrun():
    """Runs a program of tests/workers on some ranks and returns what it printed."""

    def run(num_ranks: int, script: str, *words: str) -> str:
        return runs.finish(runs.start(num_ranks, str(runs.WORKERS / script), *words, stderr=subprocess.PIPE))

    return run


@pytest.fixture(scope="session")
def tokenizer():
    """With `<image>` and `<video>`."""
    from transformers import AutoTokenizer

    from llava_train.text.placeholders import prepare_tokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parent / "golden" / "qwen2_tokenizer")
    prepare_tokenizer(tokenizer, 151646, 151647)
    return tokenizer
