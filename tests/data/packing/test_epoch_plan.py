"""The plan of an epoch: every draw once, budgets kept, packs full and alike, the same for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_train.config.load import load
from llava_train.data.packing.epoch_plan import load_plan, plan_epoch
from llava_train.data.packing.order import TokenOrder, make_order, order_key
from llava_train.data.packing.packs import Budget, PackSizes
from llava_train.shared.errors import ConfigError

BUDGET = Budget(100, 10)
KEY = (0, 7, 0)
SIZES = st.lists(st.tuples(st.integers(1, 130), st.integers(0, 12)), min_size=1, max_size=120)


def of(rows: list[tuple[int, int]]) -> PackSizes:
    lengths, tiles = np.array(rows).T
    return PackSizes(lengths, tiles, 3.0 * lengths + lengths**2 / 50 + 20 * tiles)


def drawn_sizes(count: int, seed: int = 0) -> PackSizes:
    rng = np.random.default_rng(seed)
    return of(list(zip(rng.integers(2, 30, count).tolist(), rng.integers(0, 3, count).tolist(), strict=True)))


def order_of(sizes: PackSizes, folder: Path, per_step: int = 8, seed: int = 0) -> TokenOrder:
    pack = load(["+recipe=tiny"]).stages["onevision"].pack
    pack.unit, pack.per_step, pack.window, pack.max_tokens, pack.max_tiles = "tokens", per_step, 16, 100, 10
    return TokenOrder(sizes, pack, seed, "one", 1, folder)


def samples_of(order: TokenOrder, step: int, world_size: int) -> list[int]:
    return sorted(i for packs in order.packs(step, world_size) for pack in packs for i in pack)


def test_worked_case():
    plan = plan_epoch(PackSizes(np.array([4, 3, 2, 9]), np.zeros(4), np.array([4.0, 3, 2, 9])), Budget(6, 1), 8, KEY)
    assert sorted(sorted(plan[p].tolist()) for p in range(len(plan))) == [[0], [1, 2], [3]]


@settings(max_examples=80, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(0, 3))
def test_every_draw_once_within_budget(rows, window, epoch):
    sizes = of(rows)
    plan = plan_epoch(sizes, BUDGET, window, (1, 2, epoch))
    assert sorted(plan.positions.tolist()) == list(range(len(rows)))
    for p in range(len(plan)):
        pack = plan[p]
        within = sizes.lengths[pack].sum() <= 100 and sizes.tiles[pack].sum() <= 10
        assert len(pack) == 1 or (len(pack) and within)


def test_packs_are_full_and_of_like_cost_and_mixed():
    sizes = drawn_sizes(6000)
    plan = plan_epoch(sizes, BUDGET, 256, KEY)
    tokens, costs = (np.add.reduceat(array[plan.positions], plan.starts[:-1]) for array in (sizes.lengths, sizes.costs))
    assert tokens.sum() / len(plan) > 0.97 * 100
    assert np.mean(costs) > 0.97 * np.quantile(costs, 0.99)
    assert abs(np.corrcoef(np.arange(len(plan)), sizes.tiles[plan.positions[plan.starts[:-1]]])[0, 1]) < 0.1


def test_samples_come_near_the_order_in_which_they_are_drawn():
    """A block holds what is drawn next: the draw's place and the pack's agree to about a window."""
    sizes = drawn_sizes(6000)
    plan = plan_epoch(sizes, BUDGET, 64, KEY)
    place = np.empty(6000)
    place[np.random.default_rng(KEY).permutation(6000)] = np.arange(6000) / 6000
    assert np.abs(place[plan.positions] - np.arange(6000) / 6000).max() < 3 * 64 / len(plan)


def test_plans_differ_by_epoch_and_seed_and_repeat():
    sizes = drawn_sizes(400)
    plans = [plan_epoch(sizes, BUDGET, 16, key).positions.tolist() for key in (KEY, KEY, (0, 7, 1), (1, 7, 0))]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2] != plans[3] != plans[0]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_step_holds_the_same_samples_on_any_number_of_ranks(world_size, tmp_path):
    order = order_of(drawn_sizes(700), tmp_path)
    for step in range(order.steps_per_epoch):
        ranks = order.packs(step, world_size)
        assert len(ranks) == world_size
        assert len({len(packs) for packs in ranks}) == 1
        assert samples_of(order, step, world_size) == samples_of(order, step, 1)


def test_an_epoch_resumed_on_other_ranks_loses_and_repeats_nothing(tmp_path):
    sizes = drawn_sizes(700)
    for stop in (1, 7):
        before, after = order_of(sizes, tmp_path), order_of(sizes, tmp_path)
        assert stop < after.steps_per_epoch
        seen = [i for step in range(stop) for i in samples_of(before, step, 8)]
        seen += [i for step in range(stop, after.steps_per_epoch) for i in samples_of(after, step, 2)]
        assert sorted(seen) == list(range(700))


def test_every_epoch_has_the_steps_of_the_first_and_all_draws(tmp_path):
    """Sizes of half a pack and more: how many packs they need depends on the draw."""
    rng = np.random.default_rng(0)
    sizes = of([(int(n), 0) for n in rng.integers(30, 70, 60)])
    numbers = [len(plan_epoch(sizes, BUDGET, 16, (*order_key(0, "one"), epoch))) for epoch in range(6)]
    assert numbers[0] > min(numbers)
    order = order_of(sizes, tmp_path, per_step=1)
    for epoch in range(6):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        drawn = [samples_of(order, step, 1) for step in steps]
        assert all(drawn)
        assert sorted(i for step in drawn for i in step) == list(range(60))


def test_the_last_step_uses_every_rank_it_can(tmp_path):
    order = order_of(drawn_sizes(45), tmp_path, per_step=8)
    packs = [pack for packs in order.packs(order.steps_per_epoch - 1, 8) for pack in packs]
    assert len(packs) == 8
    assert all(packs)


def test_a_plan_is_kept_and_read_again(tmp_path, monkeypatch):
    sizes = drawn_sizes(300)
    plan = load_plan(sizes, BUDGET, 16, KEY, 1, tmp_path)
    monkeypatch.setattr("llava_train.data.packing.epoch_plan.plan_epoch", None)
    again = load_plan(sizes, BUDGET, 16, KEY, 1, tmp_path)
    assert again.positions.tolist() == plan.positions.tolist()
    assert again.starts.tolist() == plan.starts.tolist()
    for other in ((drawn_sizes(300, 1), BUDGET, 16, KEY), (sizes, Budget(99, 10), 16, KEY), (sizes, BUDGET, 8, KEY)):
        with pytest.raises(TypeError):
            load_plan(*other, 1, tmp_path)


def test_packs_that_cannot_be_dealt_evenly_name_both_ways_out(tmp_path):
    stage = load(["+recipe=tiny"]).stages["onevision"]
    stage.pack.unit, stage.pack.per_step = "tokens", 12
    with pytest.raises(ConfigError) as raised:
        make_order(drawn_sizes(10), stage, "onevision", 0, 8, tmp_path)
    (fault,) = raised.value.faults
    assert fault.key == "stages.onevision.pack.per_step"
    assert fault.remedy == "set stages.onevision.pack.per_step=16, or start 6 ranks"
