import subprocess
from pathlib import Path

import pytest
import runs


@pytest.fixture(scope="session")
def torchrun():
    """Runs a worker script of this folder on some ranks and returns what it printed."""

    def run(num_ranks: int, script: str, *words: str) -> str:
        script = str(Path(__file__).parent / script)
        return runs.finish(runs.start(num_ranks, script, *words, stderr=subprocess.PIPE))

    return run
