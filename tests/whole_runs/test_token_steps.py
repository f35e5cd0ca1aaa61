"""Steps of so many packs: the same for any number of ranks, and continued by another number of them."""

import json
import shutil

import pytest

SETTINGS = (
    "stages.onevision.pack={max_tokens:400,max_tiles:32,unit:tokens,per_step:2,window:8} stages.onevision.epochs=2 "
    "stages.onevision.max_steps=0 stages.onevision.checkpoint.every=3 stages.onevision.checkpoint.keep=9 "
)


def told(folder):
    return [json.loads(line) for line in (folder / "onevision/metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in told(folder)]


def test_ranks_and_a_resume_by_another_number_of_them_change_nothing(torchrun, tmp_path):
    whole, shared, resumed = (tmp_path / name for name in ("whole", "shared", "resumed"))
    torchrun(1, "run_worker.py", f"run.dir={whole} {SETTINGS}")
    samples = [line["num_samples"] for line in told(whole)]
    assert sum(samples) == 2 * 17
    assert len(set(samples)) > 1, "a step is no fixed number of samples"

    torchrun(2, "run_worker.py", f"run.dir={shared} {SETTINGS}")
    assert losses(shared) == pytest.approx(losses(whole), rel=1e-5)

    shutil.copytree(whole, resumed)
    stage = resumed / "onevision"
    shutil.rmtree(stage / "hf")
    (stage / "finished.json").unlink()
    for step in stage.glob("step-*"):
        if step.name != "step-00000003":
            shutil.rmtree(step)
    (stage / "latest").unlink()
    torchrun(2, "run_worker.py", f"run.dir={resumed} {SETTINGS}")
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
    assert [line["num_samples"] for line in told(resumed)] == samples
