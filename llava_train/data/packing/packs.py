"""Which samples share a micro-batch: packs within a budget, of a step's samples or of an epoch's, and who runs them.

Enters: tokens, tiles and cost of samples, the budget of a pack, the number of ranks. Leaves: packs, lists of positions
into these samples. How a step's samples are packed changes speed and memory, never the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SampleSizes:
    """Of each sample: tokens with visual ones, visual tokens, supervised ones, tiles. Integers [samples]."""

    lengths: np.ndarray
    visual: np.ndarray
    supervised: np.ndarray
    tiles: np.ndarray

    def __getitem__(self, positions: np.ndarray) -> SampleSizes:
        return SampleSizes(*(array[positions] for array in vars(self).values()))


@dataclass(frozen=True)
class PackSizes:
    """Of each sample, what packing needs: tokens, tiles, and FLOPs (or anything that costs add up in)."""

    lengths: np.ndarray
    tiles: np.ndarray
    costs: np.ndarray  # float64

    @staticmethod
    def of(sizes: SampleSizes, cost: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> PackSizes:
        """cost: of samples with these tokens, tiles and supervised tokens."""
        return PackSizes(sizes.lengths, sizes.tiles, cost(sizes.lengths, sizes.tiles, sizes.supervised))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, positions: np.ndarray) -> PackSizes:
        return PackSizes(self.lengths[positions], self.tiles[positions], self.costs[positions])


@dataclass(frozen=True)
class Budget:
    """Of one pack. A sample beyond it has a pack of its own."""

    tokens: int
    tiles: int


def whole(costs: np.ndarray) -> np.ndarray:
    """Costs in whole units, float64: their sums are the same in any order, so that all ranks make the same plan."""
    return np.rint(costs * (2**30 / max(costs.max(), 1e-300)))


def pack_step(sizes: PackSizes, budget: Budget, world_size: int) -> list[list[list[int]]]:
    """Packs per rank of a step's samples, as many on every rank; [] is a filler, run for symmetry alone.

    The fewest packs that hold the samples decide how many each rank runs; the samples are then spread over all of
    these, dearest first, and swapped between them until the dearest pack cannot be made cheaper.
    Worked case: lengths and costs [5 4 3 2], no tiles, 2 ranks, 7 tokens -> packs {5 2} {4 3} -> [[[0, 3]], [[1, 2]]].
    """
    sizes = replace(sizes, costs=whole(sizes.costs))
    packs = _fewest(sizes, budget)
    num_packs = -(-len(packs) // world_size) * world_size
    packs = _spread(sizes, budget, num_packs) or packs
    packs += [[] for _ in range(num_packs - len(packs))]
    packs = [sorted(pack) for pack in _swapped(packs, sizes, budget)]
    costs = np.array([sizes.costs[pack].sum() for pack in packs])
    return [[packs[p] for p in places] for places in deal(costs, world_size)]


def deal(costs: np.ndarray, world_size: int) -> list[list[int]]:
    """Packs to ranks, as many to each: those run at the same place are of like cost, and the ranks' sums are even.

    costs [packs], a multiple of `world_size` of them. At ZeRO 3 ranks wait for the dearest at every place, so packs go
    to places by cost; within one the dearest goes to the rank with the least work.
    """
    order = np.argsort(-costs, kind="stable").reshape(-1, world_size)
    work = np.zeros(world_size)
    for place, packs in enumerate(order):
        order[place, np.argsort(work, kind="stable")] = packs
        work += costs[order[place]]
    return order.T.tolist()


def _fewest(sizes: PackSizes, budget: Budget) -> list[list[int]]:
    """Largest share of the budget first, each into the pack with the least room that still holds it."""
    shares = np.maximum(sizes.lengths / budget.tokens, sizes.tiles / budget.tiles)
    packs: list[list[int]] = []
    tokens, tiles = np.zeros(len(sizes)), np.zeros(len(sizes))  # left in each pack
    for i in np.argsort(-shares, kind="stable").tolist():
        length, num_tiles = sizes.lengths[i], sizes.tiles[i]
        room = np.minimum(tokens / budget.tokens, tiles / budget.tiles)[: len(packs)]
        room[(tokens[: len(packs)] < length) | (tiles[: len(packs)] < num_tiles)] = np.inf
        best = int(room.argmin()) if len(packs) and np.isfinite(room).any() else len(packs)
        if best == len(packs):
            packs.append([])
            tokens[best], tiles[best] = budget.tokens, budget.tiles
        packs[best].append(i)
        tokens[best], tiles[best] = tokens[best] - length, tiles[best] - num_tiles
    return packs


def _spread(sizes: PackSizes, budget: Budget, num_packs: int) -> list[list[int]] | None:
    """Samples, dearest first, each into the cheapest of `num_packs` packs with room; None if one has none."""
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    work, tokens, tiles = np.zeros(num_packs), np.zeros(num_packs), np.zeros(num_packs)
    for i in np.argsort(-sizes.costs, kind="stable").tolist():
        fits = (tokens + sizes.lengths[i] <= budget.tokens) & (tiles + sizes.tiles[i] <= budget.tiles)
        fits |= tokens == 0
        if not fits.any():
            return None
        best = int(np.where(fits, work, np.inf).argmin())
        packs[best].append(i)
        work[best] += sizes.costs[i]
        tokens[best] += sizes.lengths[i]
        tiles[best] += sizes.tiles[i]
    return packs


def _swapped(packs: list[list[int]], sizes: PackSizes, budget: Budget) -> list[list[int]]:
    """The packs with samples exchanged, or given away, as long as that makes the dearest of a pair cheaper.

    The dearest pack comes first; one that nothing helps is left alone, and the next dearest follows.
    """
    lengths, tiles, costs = (np.append(array, 0) for array in (sizes.lengths, sizes.tiles, sizes.costs))
    nothing = len(sizes)  # what a pack gives in return for a sample
    work, tokens, slots = (
        np.array([array[pack].sum() for pack in packs], dtype=np.float64) for array in (costs, lengths, tiles)
    )
    owner = np.empty(nothing, dtype=np.int64)
    for p, pack in enumerate(packs):
        owner[pack] = p
    others = np.concatenate([np.arange(nothing), np.full(len(packs), nothing)])
    owners = np.concatenate([owner, np.arange(len(packs))])
    settled = np.zeros(len(packs), dtype=bool)
    while not settled.all():
        dear = int(np.where(settled, -np.inf, work).argmax())
        mine = np.flatnonzero(owners[:nothing] == dear)
        gain = costs[mine][:, None] - costs[others]
        after = np.maximum(work[dear] - gain, work[owners] + gain)
        for load, array, limit in ((tokens, lengths, budget.tokens), (slots, tiles, budget.tiles)):
            moved = array[mine][:, None] - array[others]
            after[(load[dear] - moved > limit) | (load[owners] + moved > limit)] = np.inf
        after[:, settled[owners] | (owners == dear)] = np.inf
        if not after.size or after.min() >= work[dear] * (1 - 1e-6):
            settled[dear] = True
            continue
        a, b = np.unravel_index(after.argmin(), after.shape)
        given, taken, other = mine[a], others[b], owners[b]
        for load, array in ((work, costs), (tokens, lengths), (slots, tiles)):
            moved = array[given] - array[taken]
            load[dear], load[other] = load[dear] - moved, load[other] + moved
        owners[given] = other
        if taken != nothing:
            owners[taken] = dear
    return [np.flatnonzero(owners[:nothing] == p).tolist() for p in range(len(packs))]
