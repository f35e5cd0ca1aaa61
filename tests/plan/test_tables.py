"""What `plan` prints: the published mixture's figures, memory, and what to set where ranks would wait."""

from __future__ import annotations

import re

import pytest

from llava_train.cli.main import main
from llava_train.config.load import load
from llava_train.costs.dims import KNOWN_DIMS
from llava_train.costs.flops import sample_cost
from llava_train.family.onevision.family import OneVision
from llava_train.plan.balance import in_unit, measure_packing, plan_stage, simulated
from llava_train.shared.errors import ConfigError


def plan(capsys, *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def rows(text: str) -> dict[tuple[str, int], dict[str, float]]:
    """The table of packings, by unit and ranks."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        if cells[0] in ("samples", "tokens") and len(cells) == 10:
            names = ("samples", "packs", "fill", "each pack", "each step", "bound", "gap")
            values = dict(zip(names, (float(cell.replace(",", "")) for cell in cells[3:]), strict=True))
            found[cells[0], int(cells[2])] = values
    return found


def assert_targets(found: dict[tuple[str, int], dict[str, float]], full: float, even: float) -> None:
    for ranks in (8, 64, 512):
        figures = found["tokens", ranks]
        assert figures["fill"] >= full, ranks
        assert min(figures["each pack"], figures["each step"]) >= even, ranks
    assert found["samples", 8]["each pack"] >= 0.97
    for ranks in (64, 128):
        assert found["samples", ranks]["gap"] <= 0.01  # longest-first with swaps ends this near the bound


def test_the_simulated_mixture_meets_the_targets(capsys):
    """20,000 samples make five steps of 512 packs, the last of which is short: hence the lower bound there."""
    text = plan(capsys, "+recipe=ov_stage", "plan.simulate=20000")
    assert_targets(rows(text), full=0.85, even=0.95)
    assert rows(text)["tokens", 8]["fill"] >= 0.97
    for said in ("20,000 in an epoch", "8,030,348,832 parameters", "visual", "supervised", "longest", "ZeRO 3, both"):
        assert said in text


@pytest.mark.slow
def test_the_whole_simulated_mixture_meets_the_targets(capsys):
    text = plan(capsys, "+recipe=ov_stage", "plan.simulate=200000")
    assert_targets(rows(text), full=0.97, even=0.97)


def test_samples_of_a_run_are_planned_from_its_index(capsys, tmp_path):
    text = plan(capsys, "+recipe=tiny", "plan.world_size=2", f"run.dir={tmp_path}/run")
    assert re.search(r"stage projector: tiny\n.*\n *samples +17 in an epoch", text)
    assert "tiny, record 10 (id several), 168 tokens, 3 tiles" in text
    assert "stage onevision: tiny" in text


def test_ranks_that_would_wait_are_told_what_to_set(capsys):
    words = ["+recipe=ov_stage", "plan.simulate=3000"]
    text = plan(capsys, *words, "plan.world_size=512")
    assert "512 ranks wait 8" in text
    assert "stages.onevision.pack.unit=tokens stages.onevision.pack.per_step=512" in re.sub(r"\s+", " ", text)
    assert "of their time" not in plan(capsys, *words)


def test_a_pack_that_does_not_fit_the_gpu_is_told(capsys):
    words = ["+recipe=ov_stage", "plan.simulate=3000"]
    assert "a rank needs about" in plan(capsys, *words, "plan.gpu=rtx4090")
    assert "a rank needs about" not in plan(capsys, *words, "plan.gpu=h200")


def test_packs_that_cannot_be_dealt_are_refused_before_anything_is_read(capsys):
    words = ["stages.onevision.pack.unit=tokens", "stages.onevision.pack.per_step=12", "plan.simulate=100"]
    assert main(["plan", "+recipe=ov_stage", *words]) == 2
    assert "set stages.onevision.pack.per_step=16, or start 6 ranks" in capsys.readouterr().err


def test_hours_follow_from_gpus_and_balance(tmp_path):
    """By hand: all FLOPs over ranks, peak and balance."""
    stage, dims = load(["+recipe=ov_stage"]).stages["onevision"], KNOWN_DIMS["Qwen/Qwen2-7B-Instruct"]
    draws = simulated(600, OneVision().geometry(384, 14, stage.image), stage)
    planned = plan_stage(draws, stage, "onevision", dims, 8, 80e9, 0, tmp_path)
    assert planned.num_steps == 3
    assert planned.hours(3, 1e14) == pytest.approx(planned.flops / 8 / 1e14 / planned.asked.every / 3600)
    assert planned.hours(3, 2e14) == planned.hours(3, 1e14) / 2


def test_balance_is_that_of_a_hand_made_order(tmp_path):
    """Two ranks, two places, costs as tokens: ranks run 4 + 1 and 2 + 2 of each step's 9."""

    class Order:
        steps_per_epoch = 1

        def packs(self, step: int, world_size: int) -> list[list[list[int]]]:
            return [[[0], [1]], [[2], [3]]]

        def epoch(self, step: int) -> int:
            return 0

    stage, dims = load(["+recipe=ov_stage"]).stages["onevision"], KNOWN_DIMS["Qwen/Qwen2-7B-Instruct"]
    draws = simulated(4, OneVision().geometry(384, 14, stage.image), stage)
    sizes = draws.sizes
    sizes.tiles[:], sizes.supervised[:], sizes.visual[:] = 0, 0, 0
    sizes.lengths[:] = 4, 1, 2, 2
    found = measure_packing(Order(), sizes, stage, sample_cost(dims, stage), 2)
    assert found.every == pytest.approx(4.5 / 6, rel=1e-4)
    assert found.once == pytest.approx(4.5 / 5, rel=1e-4)
    assert found.bound == pytest.approx(1.0)
    assert found.fill == pytest.approx(9 / 4 / 32768)


def test_a_step_in_the_other_unit_is_about_as_large():
    stage = load(["+recipe=ov_stage"]).stages["onevision"]
    sizes = simulated(2000, OneVision().geometry(384, 14, stage.image), stage).sizes
    per_step = [in_unit(stage, "tokens", ranks, sizes).pack.per_step for ranks in (8, 64, 512)]
    assert per_step == [32, 64, 512]  # 256 samples of some 3,600 tokens fill 28 packs


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"plan\.stage"):
        load(["+recipe=ov_stage", "plan.stage=nothing"])
