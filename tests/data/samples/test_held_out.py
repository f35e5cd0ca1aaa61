"""What is held out is never trained on, is measured once, and depends on seed and content alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llava_train.config.load import load
from llava_train.config.schema import DataConfig, EvaluationConfig
from llava_train.costs.dims import KNOWN_DIMS
from llava_train.data.loading.stage_data import build_data
from llava_train.family.onevision.family import OneVision
from llava_train.shared.errors import ConfigError

CONFIG = load(["+recipe=tiny"])
TINY, STAGE = Path(CONFIG.data.root), CONFIG.stages["onevision"]
DATA = replace(CONFIG.data, file=str(TINY / "tiny.json"))


@pytest.fixture
def build(tokenizer, tmp_path):
    """The tiny data with an evaluation: `held_out=` or `file=`."""

    def make(seed: int = 0, rank: int = 0, world_size: int = 1, data: DataConfig = DATA, **evaluation):
        held_out = EvaluationConfig({}, 1, 1, every=1, **evaluation)
        where = (KNOWN_DIMS["Qwen/Qwen2-0.5B-Instruct"], seed, rank, world_size, tmp_path / "cache", held_out)
        return build_data(data, STAGE, "one", tokenizer, OneVision().geometry(32, 8, STAGE.image), *where)

    return make


def names(data, num_steps: int) -> list[str]:
    steps = data.step_batches(0, num_steps)
    packs = (batch.sample_ids for step in steps for batch in step.batches)
    return sorted(name for pack in packs for name in pack if name != "filler/filler")


def held(data) -> list[str]:
    return names(data.held_out, data.held_out.steps_per_epoch)


@pytest.mark.parametrize("amount", [3, 0.2, 1, 0.001])
def test_held_out_samples_are_measured_once_and_never_trained_on(build, amount):
    everything = sorted(f"tiny/{record['id']}" for record in json.loads((TINY / "tiny.json").read_text()))
    data = build(held_out=amount)
    measured = held(data)
    wanted = amount if amount >= 1 else max(1, round(amount * len(everything)))
    assert wanted <= len(measured) <= wanted + 2  # three samples are about the same pictures at the most
    assert sorted(measured + names(data, data.steps_per_epoch)) == everything
    assert not set(names(data, 3 * data.steps_per_epoch)) & set(measured)
    assert data.num_samples_by_source == {"tiny": len(everything) - len(measured)}
    assert data.held_out.num_samples == len(measured)


def test_questions_about_one_picture_are_held_out_together(build):
    pictures = {
        f"tiny/{r['id']}": {*np.ravel([r[k] for k in ("image", "video") if k in r]).tolist()}
        for r in json.loads((TINY / "tiny.json").read_text())
        if not ("image" in r and "video" in r)
    }
    shared = 0
    for seed in range(6):
        data = build(seed=seed, held_out=4)
        inside, outside = (
            [picture for name in part for picture in pictures.get(name, ())]
            for part in (held(data), names(data, data.steps_per_epoch))
        )
        assert not set(inside) & set(outside)
        shared += len(inside) - len(set(inside))
    assert shared  # else the assertion above has seen no such picture


def test_the_draw_depends_on_the_seed_and_not_on_ranks(build):
    alone = held(build(held_out=4))
    parts = [held(build(held_out=4, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == alone
    draws = {tuple(held(build(seed=seed, held_out=4))) for seed in range(4)}
    assert len(draws) > 2


def test_every_rank_measures_as_many_packs(build):
    parts = [build(held_out=4, rank=rank, world_size=3).held_out for rank in range(3)]
    counts = [[len(step.batches) for step in part.step_batches(0, part.steps_per_epoch)] for part in parts]
    assert counts[0] == counts[1] == counts[2] != []


def test_the_draw_moves_neither_with_order_nor_with_the_place_of_the_data(build, tmp_path):
    before = held(build(held_out=4))
    records = json.loads((TINY / "tiny.json").read_text())
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        for path in TINY.iterdir():
            (place / path.name).symlink_to(path)
        (place / "tiny.json").unlink()
        (place / "tiny.json").write_text(json.dumps(records[::-1]))
        data = replace(DATA, file=str(place / "tiny.json"), root=str(place))
        assert held(build(data=data, held_out=4)) == before


def test_a_file_of_its_own_is_measured_whole_and_leaves_training_as_it_is(build, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps(json.loads((TINY / "tiny.json").read_text())[:5]))
    data = build(file=str(own))
    assert (data.num_samples, data.held_out.num_samples_by_source) == (17, {"own": 5})
    assert len(held(data)) == 5


def test_holding_out_everything_is_told(build):
    with pytest.raises(
        ConfigError, match=r"(?s)evaluation.held_out: 17 takes all 17 samples of stage one.*hold out fewer"
    ):
        build(held_out=17)
