"""A run that dies is continued by the same command, with the losses of one that did not; other settings are refused."""

import json
from pathlib import Path
from subprocess import Popen

import pytest
import runs
from runs import TINY, finish, metrics

STEPS = 12


def start(folder: Path, *overrides: str) -> Popen:
    return runs.start(1, *runs.training(folder, *overrides, f"stages.onevision.max_steps={STEPS}"))


def kill_when(process: Popen, is_due) -> None:
    runs.wait_until(is_due, process)
    runs.kill(process)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder))
    return folder


def test_killed_between_checkpoints_the_run_ends_with_the_same_losses(tmp_path, unbroken):
    every_third = "stages.onevision.checkpoint.every=3"
    process = start(tmp_path, every_third)
    kill_when(process, lambda: len(metrics(tmp_path)) >= 5)
    assert len(metrics(tmp_path)) < STEPS
    assert "continued after step" in finish(start(tmp_path, every_third))
    for stage, count in (("projector", 2), ("onevision", STEPS)):
        ours, theirs = metrics(tmp_path, stage), metrics(unbroken, stage)
        assert [line["step"] for line in ours] == list(range(1, count + 1))
        assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


def test_what_is_done_is_not_done_again(unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.glob("*/hf/*")}
    assert before
    out = finish(start(unbroken))
    assert "2 of 2 stages were finished before" in out
    assert {path: path.stat().st_mtime_ns for path in unbroken.glob("*/hf/*")} == before


def test_other_settings_in_the_same_folder_are_refused(unbroken):
    out = finish(start(unbroken, "stages.projector.global_batch_size=5", "stages.projector.pack.max_tiles=8"), code=2)
    assert "not allowed:\n    stages.projector.global_batch_size: 4 -> 5\n" in out
    assert "\n  allowed:\n    stages.projector.pack.max_tiles: 16 -> 8\n" in out
    assert "run.dir=DIR" in out
    assert "Traceback" not in out


def test_other_data_under_the_same_name_is_refused(tmp_path):
    tiny = json.loads((TINY / "tiny.json").read_text())
    (tmp_path / "own.json").write_text(json.dumps(tiny))
    own = [f"data.file={tmp_path / 'own.json'}", f"data.root={TINY}", "~stages.projector"]
    process = start(tmp_path / "run", *own)
    kill_when(process, (tmp_path / "run/onevision/latest").exists)
    (tmp_path / "own.json").write_text(json.dumps(tiny[:-2]))
    assert f"samples of own: {len(tiny)} -> {len(tiny) - 2}" in finish(start(tmp_path / "run", *own), code=2)


def test_settings_of_speed_may_change_on_the_way_and_are_told(tmp_path):
    kill_when(start(tmp_path), lambda: len(metrics(tmp_path)) >= 5)
    out = finish(start(tmp_path, "log.every=2", "stages.onevision.pack.max_tiles=16"))
    assert "stage 2/2 onevision, changed since the checkpoint: log.every: 1 -> 2" in out
    assert "changed since the checkpoint: stages.onevision.pack.max_tiles: 32 -> 16" in out
    assert out.count("not bit for bit") == 1
    assert "stage 1/2 projector, changed" not in out  # it is finished
