"""The checks on the fake GPU, in a process of their own, where nothing else computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_gpu import missing

CHECKS = ["checks_micro_batch.py", "checks_plan.py"]


def test_on_the_fake_gpu():
    if reason := missing():
        pytest.skip(f"no fake GPU: {reason}")
    words = [sys.executable, Path(__file__).with_name("process.py"), *CHECKS, "-p", "no:cacheprovider"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
