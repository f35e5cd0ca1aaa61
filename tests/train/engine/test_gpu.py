"""On a GPU: the engine's steps at each ZeRO level, a whole run, and what a closed engine leaves, against the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import test_engine
import torch

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[3]


def test_every_zero_level_on_a_gpu_equals_adamw_by_hand_on_the_cpu():
    everything = test_engine.FP32 + test_engine.BF16
    command = [sys.executable, str(runs.WORKERS / "engine_worker.py"), *everything]
    done = subprocess.run(command, cwd=ROOT, env=with_this_checkout(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    test_engine.check_results(everything, done.stdout, fp32=1e-4)


@pytest.mark.parametrize("level", [2, 3])
def test_a_run_on_a_gpu_has_the_losses_of_the_cpu(tmp_path, level):
    losses = []
    for device, visible in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
        words = [f"stages.{stage}.{key}" for stage in ("projector", "onevision")
                 for key in (f"zero.level={level}", "precision=bf16")]  # fmt: skip
        command = [sys.executable, "-m", "llava_train", "+recipe=tiny", f"run.dir={tmp_path / device}", *words]
        done = subprocess.run(command, cwd=ROOT, env=with_this_checkout() | visible, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        logs = [(tmp_path / device / stage / "metrics.jsonl").read_text() for stage in ("projector", "onevision")]
        losses.append([json.loads(line)["loss"] for log in logs for line in log.splitlines()])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def with_this_checkout() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def test_there_is_a_gpu():
    assert torch.cuda.is_available()
