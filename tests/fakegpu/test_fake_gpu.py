"""The checks on the fake GPU, each file in a process of its own, where nothing else computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_gpu import missing


@pytest.mark.parametrize("checks", ["checks_micro_batch.py", "checks_plan.py"])
def test_on_the_fake_gpu(checks):
    if reason := missing():
        pytest.skip(f"no fake GPU: {reason}")
    words = [sys.executable, Path(__file__).with_name("process.py"), checks, "-p", "no:cacheprovider"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
