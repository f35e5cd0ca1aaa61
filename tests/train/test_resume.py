"""A run that dies is continued by the same command, with the losses of one that did not; other settings are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 12
TINY = Path(__file__).parents[2] / "data/tiny"


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "llava_train", "+recipe=tiny", f"run.dir={folder}", *overrides]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    steps = f"stages.onevision.max_steps={STEPS}"
    return subprocess.Popen([*command, steps], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def lines(folder: Path, stage: str) -> list[dict]:
    path = folder / stage / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder))
    return folder


def test_killed_between_checkpoints_the_run_ends_with_the_same_losses(tmp_path, unbroken):
    every_third = "stages.onevision.checkpoint.every=3"
    process = start(tmp_path, every_third)
    while len(lines(tmp_path, "onevision")) < 5:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(lines(tmp_path, "onevision")) < STEPS
    assert "continued after step" in finish(start(tmp_path, every_third))
    for stage, count in (("projector", 2), ("onevision", STEPS)):
        ours, theirs = lines(tmp_path, stage), lines(unbroken, stage)
        assert [line["step"] for line in ours] == list(range(1, count + 1))
        assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


def test_what_is_done_is_not_done_again(unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.glob("*/hf/*")}
    assert before
    out = finish(start(unbroken))
    assert "2 of 2 stages were finished before" in out
    assert {path: path.stat().st_mtime_ns for path in unbroken.glob("*/hf/*")} == before


def test_other_settings_in_the_same_folder_are_refused(unbroken):
    process = start(unbroken, "stages.projector.global_batch_size=5")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "stages.projector.global_batch_size: 4 in the checkpoint, 5 now" in out
    assert "run.dir=DIR" in out
    assert "Traceback" not in out


def test_other_data_under_the_same_name_is_refused(tmp_path):
    tiny = json.loads((TINY / "tiny.json").read_text())
    (tmp_path / "own.json").write_text(json.dumps(tiny))
    own = [f"data.file={tmp_path / 'own.json'}", f"data.root={TINY}", "~stages.projector"]
    process = start(tmp_path / "run", *own)
    while not (tmp_path / "run/onevision/latest").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "own.json").write_text(json.dumps(tiny[:-2]))
    process = start(tmp_path / "run", *own)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2, out
    assert f"samples of own: {len(tiny)} in the checkpoint, {len(tiny) - 2} now" in out
