"""The held-out loss is one at any ZeRO level and rank count, changes no step, and ends and resumes a stage alike."""

import json
import shutil
from pathlib import Path

import pytest
from runs import TINY, metrics

from llava_train.train.checkpoint.on_disk import best_of, read_state
from llava_train.train.held_out_loss import is_spent, lowest

RISING = "stages.onevision.learning_rate.language_model=0.05 stages.onevision.schedule.kind=constant"
BEST = "stages.onevision.checkpoint.best=held_out_loss stages.onevision.checkpoint.every=0"


def history(*losses: float) -> list[tuple[int, float]]:
    return list(enumerate(losses))


@pytest.mark.parametrize(
    ("losses", "step"), [([1.0], None), ([1.0, 3.0, 2.0, 2.0], 2), ([9.0, 2.0], 1), ([], None), ([0.0, 5.0, 4.0], 2)]
)
def test_the_lowest_is_the_first_of_equals_after_a_step(losses, step):
    assert (lowest(history(*losses)) or (None,))[0] == step


@pytest.mark.parametrize(
    ("losses", "patience", "spent"),
    [
        ([9, 3, 2, 2], 2, False),
        ([9, 3, 2, 2, 2.5], 2, True),
        ([9, 3, 2, 2.5, 1.9], 2, False),
        ([0, 3, 2, 1], 1, False),  # what was measured before the first step is no minimum
        ([9, 3, 4], 1, True),
        ([9, 3, 4, 5, 6, 7], 0, False),
        ([9], 1, False),
    ],
)
def test_patience_counts_measurements_since_the_lowest(losses, patience, spent):
    assert is_spent(history(*losses), patience) is spent


def test_best_is_the_oldest_lowest_of_the_checkpoints_that_were_measured(tmp_path):
    def saved(step: int, **values: float) -> Path:
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"metrics": values}))
        return folder

    folders = [
        saved(1, loss=0.1),
        saved(4, held_out_loss=2.0),
        saved(3, held_out_loss=2.0),
        saved(2, held_out_loss=3.0),
    ]
    assert best_of(folders, "held_out_loss") == tmp_path / "step-00000003"
    assert best_of(folders[:1], "held_out_loss") is None


def measured(folder: Path) -> dict[int, float]:
    return dict(json.loads((folder / "onevision/finished.json").read_text())["summary"]["held_out"])


def test_every_level_and_number_of_ranks_measures_the_same_and_changes_no_step(torchrun, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps(json.loads((TINY / "tiny.json").read_text())[:7]))
    held_out = f"evaluation.every=1 evaluation.file={own} stages.onevision.max_steps=2"
    words = [f"run.dir={tmp_path / str(i)} stages.onevision.zero.level={i} {held_out}" for i in range(4)]
    words += [f"run.dir={tmp_path / 'bf16'} stages.onevision.precision=bf16 {held_out}"]
    words += [f"run.dir={tmp_path / 'plain'} stages.onevision.zero.level=3"]
    torchrun(2, "run_worker.py", *words)
    torchrun(1, "run_worker.py", f"run.dir={tmp_path / 'alone'} {held_out}")
    alone = measured(tmp_path / "alone")
    assert list(alone) == [0, 1, 2]
    assert alone[2] < alone[1] == alone[0]  # the first step of the warm-up has rate 0
    for level in range(4):
        assert measured(tmp_path / str(level)) == pytest.approx(alone, rel=1e-5)
    assert measured(tmp_path / "bf16") == pytest.approx(alone, rel=0.02)
    ours, plain = metrics(tmp_path / "3"), metrics(tmp_path / "plain")
    assert [line["loss"] for line in ours] == [line["loss"] for line in plain]
    assert [line["held_out_loss"] for line in ours] == [measured(tmp_path / "3")[step] for step in (1, 2)]


def test_a_stage_ends_without_progress_exports_its_best_and_resumes_alike(torchrun, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    held_out = f"evaluation.every=1 evaluation.patience=2 evaluation.held_out=4 {RISING} {BEST}"
    words = f"stages.onevision.max_steps=40 {held_out}"
    out = torchrun(1, "run_worker.py", f"run.dir={whole} {words}")
    losses = measured(whole)
    best, last = min(losses, key=lambda step: losses[step]), max(losses)
    assert 0 < best == last - 2 < 38, losses
    assert f"ends after step {last} of 40" in out
    stage = whole / "onevision"
    assert (stage / "best").read_text() == f"step-{best:08d}"
    assert sorted(path.name for path in stage.glob("step-*")) == [f"step-{s:08d}" for s in (best, last)]
    assert json.loads((stage / "hf/export.json").read_text())["checkpoint"] == f"step-{best:08d}"
    card = (stage / "hf/README.md").read_text()
    assert f"| optimiser steps | {best} |" in card
    assert f"| held-out loss | {losses[best]:.4g} |" in card

    shutil.copytree(whole, cut)
    for path in (cut / f"onevision/step-{last:08d}", cut / "onevision/hf"):
        shutil.rmtree(path)
    (cut / "onevision/finished.json").unlink()
    assert f"continued after step {best}" in torchrun(1, "run_worker.py", f"run.dir={cut} {words}")
    assert measured(cut) == losses
    assert [line["loss"] for line in metrics(cut)] == [line["loss"] for line in metrics(whole)]
    states = [read_state(folder / f"onevision/step-{last:08d}")["state"] for folder in (whole, cut)]
    assert [state["held_out"] for state in states] == [[list(entry) for entry in losses.items()]] * 2
