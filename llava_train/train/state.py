"""What a checkpoint remembers beside the tensors: where the run is and what it has seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llava_train.config.errors import DataError
from llava_train.train.step import StepCounts


@dataclass
class TrainState:
    step: int = 0  # optimiser steps done
    num_samples: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    seconds: float = 0.0  # spent training, over all segments of the run
    skipped: list[dict[str, str]] = field(default_factory=list)  # samples lost in decoding, under policy skip

    def add(self, counts: StepCounts, skipped: list[DataError], seconds: float) -> None:
        self.step += 1
        self.num_samples += counts.num_samples
        self.num_tokens += counts.num_tokens
        self.num_supervised += counts.num_supervised
        self.seconds += seconds
        self.skipped += [
            {"source": e.source, "record": e.record, "reason": e.reason, "detail": e.detail} for e in skipped
        ]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
