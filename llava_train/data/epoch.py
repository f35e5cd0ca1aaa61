"""The plan of an epoch by tokens: every draw in one of many packs that are full and of like cost.

Enters: tokens, tiles and cost of an epoch's draws, their order, the budget of a pack. Leaves: an `EpochPlan`, kept in a
file. It knows nothing of ranks: a step is so many of its packs, whoever runs them.

Packs are formed in blocks, from the samples drawn next. What a block has no room for is carried into the next one.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava_train.data.packing import Budget, PackSizes

FORMAT = 1  # of the file and of the way that packs are formed; a change of either makes old plans unread
TARGET = 0.985  # of the budget that the samples of a block ask for, so that nearly all of them find room


@dataclass(frozen=True)
class EpochPlan:
    """Packs of positions: pack p is positions[starts[p]:starts[p + 1]]."""

    positions: np.ndarray  # int32 [draws]
    starts: np.ndarray  # int64 [packs + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.positions[self.starts[pack] : self.starts[pack + 1]]


def load_plan(
    sizes: PackSizes, budget: Budget, window: int, key: tuple[int, ...], least: int, folder: Path
) -> EpochPlan:
    """The plan of an epoch, from `folder` or made there, whole or absent. key: seed, stage, epoch.

    least: packs that it has at the least. Processes that ask at the same time make the same plan.
    """
    content = hashlib.sha256(repr((FORMAT, budget, window, key, least)).encode())
    for array in (sizes.lengths, sizes.tiles, sizes.costs):
        content.update(np.ascontiguousarray(array).data)
    path = folder / f"plan-{content.hexdigest()[:16]}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.part")
        with beside.open("wb") as file:
            np.savez(file, **vars(plan_epoch(sizes, budget, window, key, least)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    with np.load(path) as arrays:
        return EpochPlan(**arrays)


def plan_epoch(sizes: PackSizes, budget: Budget, window: int, key: tuple[int, ...], least: int = 1) -> EpochPlan:
    """A pure function of its arguments. window: packs of a block."""
    order = np.random.default_rng(key).permutation(len(sizes))
    shares = np.maximum(sizes.lengths / budget.tokens, sizes.tiles / budget.tiles)
    packs: list[list[int]] = [[] for _ in range(0)]
    queue = [(0.0, 0.0, p) for p in range(max(1, int(np.ceil(shares.sum() / TARGET))))]
    packs = [[] for _ in queue]
    used = np.zeros((len(queue), 2))
    for i in order.tolist():
        load, cost, p = heapq.heappop(queue)
        if packs[p] and (used[p][0] + sizes.lengths[i] > budget.tokens or used[p][1] + sizes.tiles[i] > budget.tiles):
            heapq.heappush(queue, (load, cost, p))
            p, load, cost = len(packs), 0.0, 0.0
            packs.append([])
            used = np.append(used, np.zeros((1, 2)), 0)
        packs[p].append(i)
        used[p] += sizes.lengths[i], sizes.tiles[i]
        heapq.heappush(queue, (load + shares[i], cost, p))
    packs = [pack for pack in packs if pack]
    positions = np.array([i for pack in packs for i in pack], dtype=np.int32)
    return EpochPlan(positions, np.cumsum([0, *map(len, packs)]))
