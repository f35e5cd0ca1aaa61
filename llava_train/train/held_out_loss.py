"""The loss on held-out samples while a stage trains: how it is measured, where it was lowest, when to end for it."""

from __future__ import annotations

import math

import torch

from llava_train.data.loading.stage_data import StageData
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.train.engine.engine import Engine

Measured = tuple[int, float]  # optimiser steps done, loss


def held_out_loss(engine: Engine, data: StageData, ranks: Ranks) -> float:
    """Summed cross-entropy of all held-out samples / their supervised tokens, as training counts them.

    Every rank calls it and runs as many forwards. Raises RunError where it is not finite.
    """
    sums, supervised = [torch.zeros(())], 0
    with engine.evaluating() as forward:
        for step_batches in data.step_batches(0, data.steps_per_epoch):
            for batch in step_batches.batches:
                sums.append(forward(batch).cpu())
                supervised += batch.num_supervised
    total, count = ranks.sum(float(torch.stack(sums).double().sum()), supervised)
    if not (count and math.isfinite(total)):
        told = f"the held-out loss is {total:g} over {count:.0f} tokens"
        raise RunError(f"{told}\n    -> look at the held-out samples and at the training loss before this step")
    return total / count


def lowest(history: list[Measured]) -> Measured | None:
    """The first of the lowest losses that were measured after a step; what was measured before any is no checkpoint."""
    return min((entry for entry in history if entry[0] > 0), key=lambda entry: entry[1], default=None)


def is_spent(history: list[Measured], patience: int) -> bool:
    """Whether the last `patience` losses are all no lower than one before them; never with patience 0.

    Worked case, patience 2: losses 3 2 2 -> no, 3 2 2 2.5 -> yes, 3 2 2.5 1.9 -> no.
    """
    best = lowest(history)
    return best is not None and 0 < patience <= sum(entry[0] > best[0] for entry in history)
