"""Which packs a step runs: a pure function of (seed, stage, step) and of what the stage's samples measure.

A step's samples are the same for any number of ranks and workers, so a step is the whole of the data position.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np

from llava_train.config.schema import PackConfig, StageConfig
from llava_train.data.packing.epoch_plan import EpochPlan, load_plan
from llava_train.data.packing.packs import Budget, PackSizes, deal, pack_step, whole
from llava_train.shared.errors import ConfigError, Fault

PacksByRank = list[list[list[int]]]  # for each rank its packs, as many on every rank, [] a filler; positions of samples


class Order(Protocol):
    steps_per_epoch: int

    def epoch(self, step: int) -> int: ...

    def packs(self, step: int, world_size: int) -> PacksByRank: ...


class SampleOrder:
    """A step is `batch_size` samples, the last of an epoch maybe fewer. An epoch is a permutation of all of them."""

    def __init__(self, sizes: PackSizes, budget: Budget, batch_size: int, seed: int, stage_name: str):
        assert len(sizes), stage_name
        self._sizes, self._budget, self._batch_size = sizes, budget, batch_size
        self._key = order_key(seed, stage_name)
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)
        self.steps_per_epoch = -(-len(sizes) // batch_size)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def packs(self, step: int, world_size: int) -> PacksByRank:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, drawn((*self._key, epoch), len(self._sizes))
        positions = self._permutation[place * self._batch_size : (place + 1) * self._batch_size]
        return step_packs(self._sizes, positions, self._budget, world_size)


class OnceOrder:
    """All samples as they come, once, `batch_size` at a time."""

    def __init__(self, sizes: PackSizes, budget: Budget, batch_size: int):
        self._sizes, self._budget, self._batch_size = sizes, budget, batch_size
        self.steps_per_epoch = -(-len(sizes) // batch_size)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def packs(self, step: int, world_size: int) -> PacksByRank:
        positions = np.arange(len(self._sizes))[step * self._batch_size : (step + 1) * self._batch_size]
        return step_packs(self._sizes, positions, self._budget, world_size)


class TokenOrder:
    """A step is `per_step` packs of the epoch's plan, the last of an epoch maybe fewer.

    Plans lie in `folder`, those of `num_epochs` epochs made at once, and that of a later one when it begins. All epochs
    have the steps of the first: what another has more goes to its last step.
    """

    def __init__(self, sizes: PackSizes, pack: PackConfig, seed: int, stage_name: str, num_epochs: int, folder: Path):
        self._sizes, self._pack, self._folder, self._costs = sizes, pack, folder, whole(sizes.costs)
        self._budget = Budget(pack.max_tokens, pack.max_tiles)
        self._key = order_key(seed, stage_name)
        self._epoch, self._plan = 0, self._load(0)
        self.steps_per_epoch = -(-len(self._plan) // pack.per_step)
        for epoch in range(1, num_epochs):
            self._load(epoch)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def packs(self, step: int, world_size: int) -> PacksByRank:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._load(epoch)
        start, stop = place * self._pack.per_step, (place + 1) * self._pack.per_step
        if place == self.steps_per_epoch - 1:
            positions = self._plan.positions[self._plan.starts[start] :]
            return step_packs(self._sizes, positions, self._budget, world_size)
        packs = [self._plan[p] for p in range(start, stop)]
        costs = np.array([self._costs[pack].sum() for pack in packs])
        return [[packs[p].tolist() for p in of_rank] for of_rank in deal(costs, world_size)]

    def _load(self, epoch: int) -> EpochPlan:
        least = (self.steps_per_epoch - 1) * self._pack.per_step + 1 if epoch else 1
        return load_plan(self._sizes, self._budget, self._pack.window, (*self._key, epoch), least, self._folder)


def make_order(
    sizes: PackSizes, stage: StageConfig, stage_name: str, seed: int, world_size: int, folder: Path
) -> Order:
    """The order in which a stage trains on its draws. `folder`: where plans of epochs are kept.

    Raises ConfigError where the packs of a step cannot be dealt to the ranks.
    """
    pack, budget = stage.pack, Budget(stage.pack.max_tokens, stage.pack.max_tiles)
    if pack.unit == "samples":
        return SampleOrder(sizes, budget, stage.global_batch_size, seed, stage_name)
    if fault := ranks_fault(pack, stage_name, world_size):
        raise ConfigError([fault])
    return TokenOrder(sizes, pack, seed, stage_name, math.ceil(stage.epochs), folder)


def ranks_fault(pack: PackConfig, stage_name: str, world_size: int) -> Fault | None:
    """What keeps the packs of a step from being dealt to the ranks, as many to each."""
    if pack.unit == "samples" or pack.per_step % world_size == 0:
        return None
    key, multiple = f"stages.{stage_name}.pack.per_step", -(-pack.per_step // world_size) * world_size
    fitting = max(n for n in range(1, min(pack.per_step, world_size) + 1) if pack.per_step % n == 0)
    problem = f"{pack.per_step} packs cannot be dealt evenly to {world_size} ranks"
    return Fault(key, problem, f"set {key}={multiple}, or start {fitting} ranks")


def order_key(seed: int, stage_name: str) -> tuple[int, int]:
    return seed, zlib.crc32(stage_name.encode())


def drawn(key: tuple[int, ...], num_samples: int) -> np.ndarray:
    """int64 [num_samples], the order in which an epoch draws them; key: seed, stage, epoch."""
    return np.random.default_rng(key).permutation(num_samples)


def step_packs(sizes: PackSizes, positions: np.ndarray, budget: Budget, world_size: int) -> PacksByRank:
    """The samples at `positions` as packs per rank."""
    ranks = pack_step(sizes[positions], budget, world_size)
    return [[positions[pack].tolist() if pack else [] for pack in packs] for packs in ranks]
