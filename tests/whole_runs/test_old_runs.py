"""Runs that older versions began go on: their folders lie in tests/golden/runs, with the losses that they had whole."""

import json
import shutil
from pathlib import Path

import pytest
import runs

OLD = Path(__file__).parents[1] / "golden" / "runs"
LOSSES = json.loads((OLD / "losses.json").read_text())
SETTINGS = json.loads((OLD / "settings.json").read_text())
STOPPED = 3  # the step after which each was stopped
# The run as if some settings were newer than its checkpoint.
FORGETFUL = """
import sys
from llava_train.cli.main import main
from llava_train.train.run import stages

read = stages.on_disk.newest_meta

def forget(folder):
    meta = read(folder)
    for kind in ("fixed", "free"):
        for key in ("load_in", "lora.language_model.dora", "pack.window"):
            meta["fingerprint"][kind].pop(f"stages.domain.{key}", None)
    return meta

stages.on_disk.newest_meta = forget
sys.exit(main(sys.argv[1:]))
"""
PROGRAM = {"full": ("-m", "llava_train"), "lora": ("-c", FORGETFUL)}


def go_on(name: str, folder: Path, *more: str, code: int = 0) -> str:
    shutil.copytree(OLD / name, folder)
    own = (f"model.init={folder / 'start'}", f"run.dir={folder}", f"data.root={runs.TINY}")
    return runs.finish(runs.start(1, *PROGRAM[name], *SETTINGS[name], *own, *more), code)


@pytest.mark.parametrize(("name", "stage"), [("full", "onevision"), ("lora", "domain")])
def test_an_old_run_goes_on_and_ends_as_it_would_have(tmp_path, name, stage):
    printed = go_on(name, tmp_path / "run")
    assert f"continued after step {STOPPED}" in printed
    lines = [line for line in runs.metrics(tmp_path / "run", stage) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(LOSSES[name]["loss"]) + 1))
    # Another processor sums fp32 in another order: 1e-7 of a loss a step, far below what a wrong step changes.
    assert [line["loss"] for line in lines] == pytest.approx(LOSSES[name]["loss"], rel=1e-4)
    held_out = {str(line["step"]): line["held_out_loss"] for line in lines if "held_out_loss" in line}
    assert held_out == pytest.approx(LOSSES[name]["held_out_loss"], rel=1e-4)
    assert (tmp_path / "run" / stage / "hf" / "model.safetensors").exists()


def test_a_newer_setting_at_another_value_than_its_default_is_refused(tmp_path):
    printed = go_on("lora", tmp_path / "run", "stages.domain.lora.language_model.dora=true", code=2)
    assert "stages.domain.lora.language_model.dora: False -> True" in printed
