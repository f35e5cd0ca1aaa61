"""Worker programs on several ranks, for the tests of any room."""

import subprocess

import pytest
import runs


@pytest.fixture(scope="session")
def torchrun():
    """Runs a program of tests/workers on some ranks and returns what it printed."""

    def run(num_ranks: int, script: str, *words: str) -> str:
        return runs.finish(runs.start(num_ranks, str(runs.WORKERS / script), *words, stderr=subprocess.PIPE))

    return run
