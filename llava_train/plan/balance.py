"""What a stage's packing comes to: how full packs are, how long ranks wait for each other, how much a pack holds.

Enters: sizes of an epoch's draws, their cost, an order of packs. Leaves: figures. Nothing is decoded and nothing runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llava_train.config.schema import StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.costs.flops import SampleCost, needed_cost, sample_cost
from llava_train.costs.memory import recomputed_layers
from llava_train.data.packing.order import Order, make_order
from llava_train.data.packing.packs import PackSizes, SampleSizes
from llava_train.family.base import Geometry
from llava_train.plan.simulation import SAMPLE_SHAPES, simulate

COMPARED = (8, 64, 128, 512)  # ranks, beside those asked for
LONGEST = 3  # samples that are named
STEPS = 64  # of an epoch that are looked at, evenly spread; all where there are fewer


@dataclass(frozen=True)
class Packing:
    """An order on some ranks. Balance: mean cost of a rank / the cost that is waited for.

    every: ranks wait at each micro-batch, as at ZeRO 2 and 3; once: at the end of a step, as at 0 and 1. bound: what no
    packing can exceed, since a step takes a rank at least its dearest sample. Costs are FLOPs as they are run.
    """

    unit: str
    world_size: int
    per_step: int  # packs as set, 0 with unit=samples
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


@dataclass(frozen=True)
class Draws:
    """The samples of one epoch, each as often as it is drawn. left_out: how many are not, by reason."""

    sizes: SampleSizes
    name_of: Callable[[int], str]
    left_out: dict[str, int]


@dataclass(frozen=True)
class StagePlan:
    """asked: of the stage as it is set, on the ranks asked for. others: both units, on these ranks and others.

    num_steps: of the stage. flops: of the stage, without what is computed twice, over all ranks. longest: positions.
    """

    draws: Draws
    asked: Packing
    others: list[Packing]
    num_steps: int
    flops: float
    longest: list[int]

    def hours(self, level: int, flops_per_second: float) -> float:
        """On GPUs that each reach `flops_per_second` while they do not wait."""
        return self.flops / self.asked.balance(level) / self.asked.world_size / flops_per_second / 3600


def simulated(num_samples: int, geometry: Geometry, stage: StageConfig) -> Draws:
    """Draws of a mixture like OneVision's, without those beyond the stage's max_length."""
    drawn = simulate(num_samples, geometry, stage.video)
    fits = np.flatnonzero(drawn.sizes.lengths <= stage.max_length)
    names, kinds = list(SAMPLE_SHAPES), drawn.kinds[fits]
    left_out = {"too long": num_samples - len(fits)} if len(fits) < num_samples else {}
    return Draws(drawn.sizes[fits], lambda draw: names[kinds[draw]], left_out)


def plan_stage(
    draws: Draws,
    stage: StageConfig,
    name: str,
    dims: ModelDims,
    world_size: int,
    memory: float,
    seed: int,
    folder: Path,
) -> StagePlan:
    """memory: bytes of a GPU. folder: where plans of epochs are kept.

    Raises ConfigError where packs cannot be dealt to the ranks.
    """
    sizes = draws.sizes

    def measured(stage: StageConfig, world_size: int) -> Packing:
        measures = PackSizes.of(sizes, sample_cost(dims, stage))
        order = make_order(measures, stage, name, seed, world_size, folder)
        cost = sample_cost(dims, stage, recomputed_layers(dims, stage, world_size, memory))
        return measure_packing(order, sizes, stage, cost, world_size)

    asked = measured(stage, world_size)
    others = []
    for unit in ("samples", "tokens"):
        for ranks in sorted({*COMPARED, world_size}):
            is_asked = (unit, ranks) == (stage.pack.unit, world_size)
            others.append(asked if is_asked else measured(in_unit(stage, unit, ranks, sizes), ranks))
    by_epochs = math.ceil(stage.epochs * asked.num_steps)
    num_steps = min(n for n in (by_epochs, stage.max_steps) if n)
    flops = needed_cost(dims, stage)(sizes.lengths, sizes.tiles, sizes.supervised).sum()
    longest = np.argsort(-sizes.lengths, kind="stable")[:LONGEST].tolist()
    return StagePlan(draws, asked, others, num_steps, float(flops) * num_steps / asked.num_steps, longest)


def measure_packing(
    order: Order, sizes: SampleSizes, stage: StageConfig, cost_of: SampleCost, world_size: int
) -> Packing:
    """Figures of `order` from its first epoch."""
    cost = cost_of(sizes.lengths, sizes.tiles, sizes.supervised)
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
        unit=stage.pack.unit,
        world_size=world_size,
        per_step=stage.pack.per_step,
        num_steps=num_steps,
        samples=num_samples / len(steps),
        packs=len(tokens) / len(steps) / world_size,
        fill=float(tokens.mean() / stage.pack.max_tokens),
        fill_tiles=float(tiles.mean() / stage.pack.max_tiles),
        every=float(every),
        once=float(once),
        bound=float(bound),
        tokens=tokens,
        tiles=tiles,
        supervised=supervised,
    )


def in_unit(stage: StageConfig, unit: str, world_size: int, sizes: SampleSizes) -> StageConfig:
    """The stage with steps in `unit`, about as large as they are, and of packs that can be dealt to so many ranks."""
    pack = stage.pack
    if unit == "samples":
        return replace(stage, pack=replace(pack, unit="samples", per_step=0))
    asked = np.maximum(sizes.lengths / pack.max_tokens, sizes.tiles / pack.max_tiles).mean()
    wanted = pack.per_step or stage.global_batch_size * asked
    per_step = max(1, round(wanted / world_size)) * world_size
    return replace(stage, pack=replace(pack, unit="tokens", per_step=per_step))
