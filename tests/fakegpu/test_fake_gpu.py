"""The checks on the fake GPU, in a process of their own, where nothing else computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_gpu import missing


def test_a_micro_batch_on_the_fake_gpu():
    if reason := missing():
        pytest.skip(f"no fake GPU: {reason}")
    checks = Path(__file__).with_name("checks.py")
    done = subprocess.run(
        [sys.executable, checks, "-p", "no:cacheprovider"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
