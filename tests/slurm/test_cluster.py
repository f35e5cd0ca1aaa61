"""The cluster of the tests leaves nothing behind, however the tests end."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import missing
from undertaker import left

pytestmark = pytest.mark.slurm
_WORKER = """
import subprocess, sys
sys.path[:0] = sys.argv[1:]
from cluster import Cluster
with Cluster() as cluster:
    job = subprocess.Popen(["srun", "sleep", "600"], env=cluster.environ)
    cluster.wait_until(lambda: "RUNNING" in cluster.run("squeue", "--format=%T"))
    print(cluster.folder, flush=True)
    job.wait()
"""


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_killed_test_run_leaves_no_process_and_no_file():
    here = Path(__file__).parent
    command = [sys.executable, "-c", _WORKER, str(here), str(here.parent / "helpers")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        process.kill()
    assert folder.name.startswith("slurm-")
    deadline = time.monotonic() + 30
    while folder.exists() or list(left(str(folder))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
