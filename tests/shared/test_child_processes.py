"""Processes that data starts outlive a signal to the whole group, never their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from llava_train.shared.child_processes import follow_parent, shielded

# Prepares items larger than a pipe holds, so that a worker is stuck writing to a parent that does not read.
LOADER = """
import multiprocessing, sys
import numpy as np
from torch.utils.data import DataLoader
from llava_train.shared.child_processes import follow_parent, shielded

class Large:
    def __len__(self): return 4
    def __getitem__(self, i): return np.zeros(10**6)

loader = DataLoader(Large(), batch_size=None, num_workers=1, collate_fn=lambda x: x, worker_init_fn=follow_parent)
with shielded():
    items = iter(loader)
[worker] = multiprocessing.active_children()
next(items)
print(worker.pid, flush=True)
sys.stdin.readline()
print(sum(1 for item in items), flush=True)
"""


def exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def loader():
    command = [sys.executable, "-c", LOADER]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def test_a_worker_outlives_what_another_process_signals_and_serves_to_the_end(loader):
    process, worker = loader
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(worker, number)
    time.sleep(0.3)
    assert exists(worker)
    out, _ = process.communicate("\n", timeout=60)
    assert out.split() == ["3"]
    assert process.returncode == 0
    assert not exists(worker)


def test_a_worker_ends_with_a_parent_that_was_killed(loader):
    process, worker = loader
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while exists(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_ends_at_its_parents_word():
    with shielded():
        process = multiprocessing.get_context("fork").Process(target=_sleep_on)
        process.start()
    process.terminate()  # as DataLoader and Pool do
    process.join(10)
    assert process.exitcode == 0


def _sleep_on() -> None:
    follow_parent()
    time.sleep(60)
