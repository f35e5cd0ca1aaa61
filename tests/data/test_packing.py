"""The plan of a step: nothing lost, budgets kept, ranks equal."""

from __future__ import annotations

import random

import pytest

from llava_train.data.packing import plan_step


def test_worked_case():
    assert plan_step([5, 4, 3, 2], [0] * 4, 2, 7, 1) == [[[0, 3]], [[1, 2]]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_sample_once_within_budget_and_ranks_equal(world_size):
    rng = random.Random(world_size)
    for _ in range(50):
        count = rng.randint(1, 60)
        lengths = [rng.randint(1, 120) for _ in range(count)]
        tiles = [rng.choice([0, 0, 1, 5, 12]) for _ in range(count)]
        plan = plan_step(lengths, tiles, world_size, 100, 10)
        assert len(plan) == world_size
        assert len({len(packs) for packs in plan}) == 1
        packs = [pack for packs in plan for pack in packs if pack]
        assert sorted(i for pack in packs for i in pack) == list(range(count))
        for pack in packs:
            within = sum(lengths[i] for i in pack) <= 100 and sum(tiles[i] for i in pack) <= 10
            assert within or len(pack) == 1
        assert sum(not pack for packs in plan for pack in packs) < world_size


def test_sample_over_budget_is_alone():
    (packs,) = plan_step([300, 10, 10], [0, 0, 0], 1, 100, 10)
    assert sorted(packs) == [[0], [1, 2]]
    (packs,) = plan_step([10, 10, 10], [11, 0, 0], 1, 100, 10)
    assert sorted(packs) == [[0], [1, 2]]


def test_packs_are_well_filled():
    """Volume bound: best fit needs at most about a fifth more than the sum of lengths asks for."""
    rng = random.Random(0)
    lengths = [rng.randint(5, 400) for _ in range(256)]
    (packs,) = plan_step(lengths, [0] * 256, 1, 1000, 10)
    assert len(packs) <= sum(lengths) / 1000 * 1.05 + 1


def test_work_is_spread_over_the_ranks():
    rng = random.Random(1)
    lengths = [rng.randint(100, 1000) for _ in range(256)]
    plan = plan_step(lengths, [0] * 256, 4, 4000, 10)
    work = [sum(lengths[i] for pack in packs for i in pack) for packs in plan]
    assert max(work) / min(work) < 1.1


def test_fewer_samples_than_ranks_leave_fillers():
    assert plan_step([10, 20], [0, 0], 4, 100, 10) == [[[1]], [[0]], [[]], [[]]]


def test_samples_that_fit_one_pack_use_every_rank():
    assert sorted(plan_step([4, 3, 2, 2, 1], [0] * 5, 4, 100, 10)) == [[[0]], [[1]], [[2, 4]], [[3]]]
