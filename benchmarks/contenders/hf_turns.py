"""How a trainer that is built on transformers' Trainer takes turns: steps in the order of the samples, losses kept."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from turns import LEARNING_RATE, Sample, Turns, num_tokens

# of transformers' TrainingArguments: AdamW at one rate, one clipping, and nothing beside the steps
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "max_steps": 10**6,
    "max_grad_norm": 1.0,
    "adam_beta2": 0.999,
    "weight_decay": 0.0,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": [],
    "remove_unused_columns": False,
    "disable_tqdm": True,
}


class InOrder:
    """Mixed into a Trainer: samples in their order, and the sum of the losses of a step's micro-batches."""

    losses = 0.0
    train_dataset: Any

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]  # of the Trainer beside it
        self.losses += float(loss)
        return loss


class Taking(TrainerCallback):
    """Takes turns between the steps of `trainer`."""

    def __init__(self, turns: Turns, steps: list[list[Sample]]):
        self.turns, self.tokens = turns, [num_tokens(samples) for samples in steps]
        self.trainer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.turns.wait()

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        loss, self.trainer.losses = self.trainer.losses, 0.0
        self.turns.done(loss, self.tokens[(state.global_step - 1) % len(self.tokens)])
