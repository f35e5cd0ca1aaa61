"""What a stage's packing comes to: how full packs are, how long ranks wait for each other, how much a pack holds.

Enters: sizes of an epoch's draws, their cost, an order of packs. Leaves: figures. Nothing is decoded and nothing runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llava_train.config.schema import StageConfig
from llava_train.data.packing import PackSizes, SampleSizes
from llava_train.data.sampler import Order, make_order
from llava_train.family.onevision.cost import ModelDims, sample_cost

STEPS = 64  # of an epoch that are looked at, evenly spread; all where there are fewer


@dataclass(frozen=True)
class Packing:
    """An order on some ranks. Balance: mean cost of a rank / the cost that is waited for.

    every: ranks wait at each micro-batch, as at ZeRO 2 and 3; once: at the end of a step, as at 0 and 1. bound: what no
    packing can exceed, since a step takes a rank at least its dearest sample. Costs are FLOPs as they are run.
    """

    unit: str
    world_size: int
    num_steps: int  # of an epoch
    samples: float  # of a step
    packs: float  # of a step on one rank
    fill: float  # tokens / what the packs that run could hold
    fill_tiles: float
    every: float
    once: float
    bound: float
    tokens: np.ndarray  # of each pack looked at, like the two below
    tiles: np.ndarray
    supervised: np.ndarray

    def balance(self, level: int) -> float:
        return self.every if level >= 2 else self.once


def stage_order(
    sizes: SampleSizes, stage: StageConfig, stage_name: str, dims: ModelDims, seed: int, world_size: int, folder: Path
) -> Order:
    """The order in which the stage would train on these draws. Raises ConfigError as `make_order`."""
    cost = sample_cost(dims, stage, recompute=False)(sizes.lengths, sizes.tiles, sizes.supervised)
    return make_order(PackSizes(sizes.lengths, sizes.tiles, cost), stage, stage_name, seed, world_size, folder)


def measure_packing(order: Order, sizes: SampleSizes, stage: StageConfig, dims: ModelDims, world_size: int) -> Packing:
    """Figures of `order` from its first epoch."""
    cost = sample_cost(dims, stage, stage.gradient_checkpointing)(sizes.lengths, sizes.tiles, sizes.supervised)
    num_steps = order.steps_per_epoch
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, STEPS)).astype(int))
    held: list[np.ndarray] = []  # of each step: tokens, tiles, labels of its packs [3, world_size * places]
    num_samples = 0
    waited = np.zeros(4)  # mean, every, once, bound
    for step in steps.tolist():
        ranks = order.packs(step, world_size)
        packs = [np.array(pack, dtype=np.int64) for of_rank in ranks for pack in of_rank]
        drawn = np.concatenate(packs)
        costs = np.array([cost[pack].sum() for pack in packs]).reshape(world_size, -1)
        mean = costs.sum() / world_size
        waited += mean, costs.max(0).sum(), costs.sum(1).max(), max(mean, cost[drawn].max())
        columns = (sizes.lengths, sizes.tiles, sizes.supervised)
        held.append(np.array([[column[pack].sum() for pack in packs] for column in columns]))
        num_samples += len(drawn)
    tokens, tiles, supervised = np.concatenate(held, axis=1)
    every, once, bound = waited[0] / waited[1:]
    return Packing(
        stage.pack.unit, world_size, num_steps, num_samples / len(steps), len(tokens) / len(steps) / world_size,
        float(tokens.mean() / stage.pack.max_tokens), float(tiles.mean() / stage.pack.max_tiles),
        float(every), float(once), float(bound), tokens, tiles, supervised,
    )  # fmt: skip


def in_unit(stage: StageConfig, unit: str, world_size: int) -> StageConfig:
    """The stage with steps in `unit`: where its own packs cannot be dealt to so many ranks, with as few as can."""
    pack = stage.pack
    if unit == "samples":
        return replace(stage, pack=replace(pack, unit="samples", per_step=0))
    per_step = max(1, -(-pack.per_step // world_size)) * world_size
    return replace(stage, pack=replace(pack, unit="tokens", per_step=per_step))
