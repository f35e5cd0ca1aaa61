"""One optimiser step: the gradient of the mean loss over the supervised tokens of the global batch, however packed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from llava_train.batch.packed import PackedBatch
from llava_train.data.loading.steps import StepBatches
from llava_train.ranks.process_group import Ranks
from llava_train.ranks.step_guard import Guard
from llava_train.shared.errors import RunError
from llava_train.train.checkpoint.state import StepCounts
from llava_train.train.engine.engine import Engine
from llava_train.train.run.pack_too_large import PackTooLarge

_REMEDY = (
    "nothing was updated, and the last checkpoint is untouched: look at these samples with `preview`, and at the "
    "losses before; a lower learning rate may do"
)


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean over the step's supervised tokens
    grad_norm: float  # before clipping
    part_norms: dict[str, float]  # gradient norm per part, where asked for


def count(step_batches: StepBatches, guard: Guard, wants_stop: bool = False) -> StepCounts:
    """What the decoded step holds. Taken before its first forward, since decoding may have left slots empty.

    `wants_stop`: whether this rank was told to stop; it rides in the same message, so that all of them agree.
    Raises RunError where the ranks have different steps before them, or one does not come.
    """
    batches = step_batches.batches
    plan = {"epoch": step_batches.epoch, "micro-batches": len(batches), "order of samples": step_batches.order}
    local = [
        sum(len(b.sample_ids) for b in batches),
        sum(len(b.input_ids) for b in batches if b.sample_ids),
        sum(b.num_supervised for b in batches),
        sum(len(b.visuals) for b in batches),
        len(step_batches.skipped),
    ]
    told = guard.meet(step_batches.step, plan, [*local, wants_stop])
    samples, tokens, supervised, visuals, skipped, stops = (int(sum(of_ranks)) for of_ranks in zip(*told, strict=True))
    return StepCounts(samples, tokens, supervised, visuals, skipped, wants_stop=stops > 0)


def train_step(
    engine: Engine,
    batches: list[PackedBatch],
    counts: StepCounts,
    ranks: Ranks,
    part_of: Mapping[str, str] | None = None,
) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one update.

    Loss = sum of token cross-entropies / `counts.num_supervised`, over all ranks: the unpacked global batch's own.
    `part_of` (parameter name -> part) asks for gradient norms per part. Raises PackTooLarge, and RunError on all ranks
    where a loss or the gradient is not finite: with the samples, and before anything is updated.
    """
    if counts.num_supervised == 0:
        raise RunError("this step supervises no token: nothing to learn from. Look at its samples with `preview`")
    sums = []
    for i, batch in enumerate(batches):
        try:
            sums.append(engine.forward_backward(batch, counts.num_supervised, is_last=i == len(batches) - 1))
        except torch.OutOfMemoryError as error:
            raise PackTooLarge(batch) from error
    losses = torch.stack(sums).double()
    total, num_bad = ranks.sum(losses.sum(), (~losses.isfinite()).sum())  # the one read of the losses from a GPU
    if num_bad:
        bad = [batch for loss, batch in zip(losses, batches, strict=True) if not loss.isfinite()]
        raise RunError(f"the loss is not finite in the pack of: {_samples(bad, ranks)}\n    -> {_REMEDY}")
    part_norms = engine.gradient_norms(part_of) if part_of else {}
    grad_norm = engine.step()
    if not math.isfinite(grad_norm):
        told = f"the loss is finite and its gradient is not, in the step of: {_samples(batches, ranks)}"
        raise RunError(f"{told}\n    -> {_REMEDY}")
    return StepResult(total / counts.num_supervised, grad_norm, part_norms)


def _samples(batches: list[PackedBatch], ranks: Ranks) -> str:
    """Names of all ranks' samples in these packs."""
    names = ranks.gather([sample for batch in batches for sample in batch.sample_ids])
    return ", ".join(sample for of_rank in names for sample in of_rank)
