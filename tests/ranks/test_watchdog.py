"""A rank that hangs ends with a code of its own, its stack in a file, even where it never lets the interpreter go."""

import subprocess
import sys
import time

import pytest

from llava_train.ranks.signals import HUNG
from llava_train.ranks.step_guard import LONGER
from llava_train.ranks.watchdog import FIRST, Watchdog

_WORKER = """
import re, sys, threading, time
from pathlib import Path
from llava_train.ranks.watchdog import Watchdog
def lost():
    {hang}
with Watchdog(Path(sys.argv[1]), 3, 0.3) as watchdog:
    for doing in ("step", "pause", "step"):
        watchdog.watch(doing)
    lost()
"""


def start(folder, hang: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _WORKER.format(hang=hang), str(folder)], stderr=subprocess.PIPE)


def test_a_rank_that_hangs_writes_its_stack_and_ends(tmp_path):
    process = start(tmp_path, "time.sleep(60)")
    _, told = process.communicate(timeout=60)
    assert process.returncode == HUNG
    assert b"no end of a step within 0 s" in told
    assert "in lost" in (tmp_path / "stacks/rank-0003.txt").read_text()


def test_a_rank_that_keeps_the_interpreter_writes_its_stack(tmp_path):
    process = start(tmp_path, "re.match('(a+)+b', 'a' * 60)")  # takes years, and no other thread runs meanwhile
    stack = tmp_path / "stacks/rank-0003.txt"
    try:
        deadline = time.monotonic() + 60
        while not (stack.exists() and "in lost" in stack.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()


def test_the_limit_follows_from_the_longest_step(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("llava_train.ranks.watchdog.time.monotonic", lambda: now)
    with Watchdog(tmp_path, 0, least=5.0) as watchdog:
        watchdog.watch("step")
        assert watchdog.limit() == FIRST
        for seconds, limit in ((0.1, 5.0), (7.0, LONGER * 7.0), (2.0, LONGER * 7.0)):
            now += seconds
            watchdog.watch("pause")
            now += 1000.0  # a long save gives no step longer
            watchdog.watch("step")
            assert watchdog.limit() == pytest.approx(limit)
        watchdog.watch("pause")
        assert watchdog.limit() == pytest.approx(LONGER * 1000.0)
    assert not (tmp_path / "stacks").exists()
