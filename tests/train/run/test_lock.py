"""A run's folder is one start's at a time; who has died holds nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.train.run import lock
from llava_train.train.run.lock import alone

ALONE = Ranks(0, 1, torch.device("cpu"))
HOLDS = """
import sys, time; from filelock import FileLock
held = FileLock(sys.argv[1]); held.acquire(); print("held", flush=True); time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that trains in `run`, as far as locks go."""
    (tmp_path / "run").mkdir()
    words = [sys.executable, "-c", HOLDS, str(tmp_path / "run" / lock.LOCK)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def note(run: Path, process: int, host: str | None = None, job: str = "") -> None:
    (run / lock.HOLDER).write_text(json.dumps({"process": process, "host": host or socket.gethostname(), "job": job}))


def test_the_second_is_refused_at_once_and_names_the_first(tmp_path, other):
    run = tmp_path / "run"
    note(run, other.pid)
    began = time.monotonic()
    with (
        pytest.raises(RunError, match=rf"run is being trained by process {other.pid} on {socket.gethostname()}\n") as e,
        alone(run, ALONE),
    ):
        pass
    assert "run.dir=DIR" in str(e.value)
    assert time.monotonic() - began < 1
    assert json.loads((run / lock.HOLDER).read_text())["process"] == other.pid


def test_one_on_another_host_is_named_too(tmp_path, other):
    note(tmp_path / "run", other.pid, "node7", job="12")
    with pytest.raises(RunError, match=f"by process {other.pid} on node7"), alone(tmp_path / "run", ALONE):
        pass


def test_the_lock_of_one_that_died_is_taken(tmp_path, other):
    run = tmp_path / "run"
    note(run, other.pid)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with alone(run, ALONE):
        assert json.loads((run / lock.HOLDER).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("job", ["", "12"])
def test_what_outlives_its_starter_is_waited_for(tmp_path, other, job, monkeypatch):
    """Workers of a process that was killed; those of a node that SLURM has lost."""
    run = tmp_path / "run"
    note(run, 2**22 + 1, "node7" if job else None, job)  # more than any process's number
    monkeypatch.setattr(lock, "ENDING" if not job else "EVICTED", 30.0)
    subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({other.pid}, 9)"])
    with alone(run, Ranks(0, 1, torch.device("cpu"), environ={"SLURM_JOB_ID": job})):
        pass


def test_a_worker_that_ends_leaves_the_lock_to_its_parent(tmp_path):
    with alone(tmp_path, ALONE):
        worker = get_context("fork").Process(target=int)
        worker.start()
        worker.join()
        other = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path / lock.LOCK)], capture_output=True, text=True)
        assert other.stdout == "held by another\n", other.stderr
    with alone(tmp_path, ALONE):
        pass


PROBE = """
import sys; from filelock import FileLock, Timeout
try: FileLock(sys.argv[1]).acquire(blocking=False)
except Timeout: print("held by another")
"""


def test_other_ranks_take_no_lock(tmp_path, other):
    note(tmp_path / "run", other.pid)

    class Second(Ranks):
        def first(self, value):
            return ""

    with alone(tmp_path / "run", Second(1, 2, torch.device("cpu"))):
        pass


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def refuse(*_args, **_options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    with alone(tmp_path, ALONE):
        assert "cannot be locked (No locks available)" in capsys.readouterr().out
