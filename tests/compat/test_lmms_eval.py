"""lmms-eval's own class reads a checkpoint of ours and answers as we do. Its tasks lie on the hub and are not run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from runs import TINY

from llava_train.data.samples.sample import Sample, Turn
from llava_train.evaluate.answerer import Answerer
from llava_train.model.loading.tiny_model import make_tiny


def test_lmms_eval_answers_by_a_checkpoint_of_ours(tmp_path, path_of):
    folder, image, text = make_tiny(tmp_path / "tiny"), TINY / "images/red_disc.png", "What is it?"
    environ = os.environ | {"PYTHONPATH": path_of("lmms_eval", "torchvision"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, Path(__file__).with_name("load_lmms_eval.py"), folder, image, text]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    sample = Sample("one", "test", [Turn("human", f"<image>\n{text}")], [image])
    [ours] = Answerer(str(folder), torch.device("cpu"), 10**6, 60.0).answers([sample], 1, 8)
    assert {kind: answer.strip() for kind, answer in theirs.items()} == {"chat": ours, "simple": ours}
    assert ours
