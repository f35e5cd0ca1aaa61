"""The plan of a step: nothing lost, budgets kept, ranks equal."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llava_train.data.packing.packs import Budget, PackSizes, deal, pack_step


def of(lengths: list[int], tiles: list[int] | None = None) -> PackSizes:
    """Sizes whose cost is their length."""
    num_tiles = np.array(tiles) if tiles else np.zeros(len(lengths), dtype=int)
    return PackSizes(np.array(lengths), num_tiles, np.array(lengths, dtype=float))


def test_worked_case():
    assert pack_step(of([5, 4, 3, 2]), Budget(7, 1), 2) == [[[0, 3]], [[1, 2]]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_sample_once_within_budget_and_ranks_equal(world_size):
    rng = random.Random(world_size)
    for _ in range(50):
        count = rng.randint(1, 60)
        lengths = [rng.randint(1, 120) for _ in range(count)]
        tiles = [rng.choice([0, 0, 1, 5, 12]) for _ in range(count)]
        plan = pack_step(of(lengths, tiles), Budget(100, 10), world_size)
        assert len(plan) == world_size
        assert len({len(packs) for packs in plan}) == 1
        packs = [pack for packs in plan for pack in packs if pack]
        assert sorted(i for pack in packs for i in pack) == list(range(count))
        for pack in packs:
            within = sum(lengths[i] for i in pack) <= 100 and sum(tiles[i] for i in pack) <= 10
            assert within or len(pack) == 1
        assert sum(not pack for packs in plan for pack in packs) < world_size


def test_sample_over_budget_is_alone():
    (packs,) = pack_step(of([300, 10, 10]), Budget(100, 10), 1)
    assert sorted(packs) == [[0], [1, 2]]
    (packs,) = pack_step(of([10, 10, 10], [11, 0, 0]), Budget(100, 10), 1)
    assert sorted(packs) == [[0], [1, 2]]


def test_packs_are_well_filled():
    """Volume bound: best fit needs at most about a fifth more than the sum of lengths asks for."""
    rng = random.Random(0)
    lengths = [rng.randint(5, 400) for _ in range(256)]
    (packs,) = pack_step(of(lengths), Budget(1000, 10), 1)
    assert len(packs) <= sum(lengths) / 1000 * 1.05 + 1


def test_work_is_spread_over_places_and_ranks():
    rng = random.Random(1)
    lengths = [rng.randint(100, 1000) for _ in range(256)]
    plan = pack_step(of(lengths), Budget(4000, 10), 4)
    work = np.array([[sum(lengths[i] for i in pack) for pack in packs] for packs in plan])
    assert work.max(0).sum() < 1.001 * work.sum() / 4


def test_swaps_even_out_what_longest_first_leaves():
    """Longest first ends at {3 2 2} {3 2}; 3 against 2 makes both 6."""
    assert sorted(plan for plan in pack_step(of([3, 3, 2, 2, 2]), Budget(100, 1), 2)) == [[[0, 1]], [[2, 3, 4]]]


def test_fewer_samples_than_ranks_leave_fillers():
    assert sorted(pack_step(of([10, 20]), Budget(100, 10), 4)) == [[[]], [[]], [[0]], [[1]]]


def test_samples_that_fit_one_pack_use_every_rank():
    assert sorted(pack_step(of([4, 3, 2, 2, 1]), Budget(100, 10), 4)) == [[[0]], [[1]], [[2, 4]], [[3]]]


def test_packs_of_like_cost_run_at_the_same_place_and_ranks_have_equal_sums():
    """By hand: places {9 8} {5 4} {2 1}; the rank that began with 9 gets the cheaper of each."""
    assert deal(np.array([1.0, 9, 2, 8, 5, 4]), 2) == [[1, 5, 2], [3, 4, 0]]
