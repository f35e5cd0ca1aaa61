"""What a checkpoint remembers beside the tensors: where the run is and what it has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llava_train.shared.errors import DataError

HELD_OUT_LOSS = "held_out_loss"  # its name in logs, in checkpoints and in checkpoint.best


@dataclass(frozen=True)
class StepCounts:
    """Sums over all ranks and micro-batches of one step."""

    num_samples: int
    num_tokens: int
    num_supervised: int
    num_visuals: int
    num_skipped: int
    wants_stop: bool  # a rank was told to stop: all of them save and stop instead of taking this step


@dataclass
class TrainState:
    step: int = 0  # optimiser steps done
    num_samples: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    loss: float = math.nan  # of the last step
    loss_sum: float = 0.0  # over the supervised tokens since the last checkpoint
    loss_tokens: int = 0  # these tokens
    seconds: float = 0.0  # spent training, over all segments of the run
    held_out: list[tuple[int, float]] = field(default_factory=list)  # step and held-out loss, each time it was measured
    moved_parts: list[str] = field(default_factory=list)  # parts that have shown a gradient
    skipped: list[dict[str, str]] = field(default_factory=list)  # samples lost in decoding, under policy skip

    def add(self, counts: StepCounts, loss: float, skipped: list[DataError], seconds: float) -> None:
        self.step += 1
        self.num_samples += counts.num_samples
        self.num_tokens += counts.num_tokens
        self.num_supervised += counts.num_supervised
        self.loss = loss
        self.loss_sum += loss * counts.num_supervised
        self.loss_tokens += counts.num_supervised
        self.seconds += seconds
        self.skipped += [error_record(error) for error in skipped]

    def take_mean_loss(self) -> float:
        """Over the supervised tokens since it was last asked."""
        mean = self.loss_sum / self.loss_tokens if self.loss_tokens else math.nan
        self.loss_sum, self.loss_tokens = 0.0, 0
        return mean


def error_record(error: DataError) -> dict[str, str]:
    return {"source": error.source, "record": error.record, "reason": error.reason, "detail": error.detail}
