import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def torchrun():
    """Runs a worker script of this folder on some ranks and returns what it printed."""

    def run(num_ranks: int, script: str, *words: str, timeout: int = 300) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
        command = [*(launcher if num_ranks > 1 else [sys.executable]), str(HERE / script), *words]
        environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environ)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    return run
