"""TRL's SFTTrainer, one sample at a time with accumulation, on the samples as they are."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration, TrainerCallback
from trl import SFTConfig, SFTTrainer
from turns import LEARNING_RATE, Turns, hf_batch, num_tokens, read_steps, settings


class Trainer(SFTTrainer):
    """In the order of the samples; keeps the losses of a step."""

    losses: float = 0.0

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses += float(loss)
        return loss


class Taking(TrainerCallback):
    """Takes turns between the trainer's steps."""

    def __init__(self, turns: Turns, tokens: list[int]):
        self.turns, self.tokens, self.trainer = turns, tokens, None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.turns.wait()

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        loss, self.trainer.losses = self.trainer.losses, 0.0
        self.turns.done(loss, self.tokens[(state.global_step - 1) % len(self.tokens)])


def main() -> None:
    told = settings()
    turns = Turns()
    folder, bf16 = f"{told['folder']}/model", told["precision"] == "bf16"
    steps = read_steps(told["folder"])
    batches = [hf_batch([sample], torch.float32) for samples in steps for sample in samples]
    taking = Taking(turns, [num_tokens(samples) for samples in steps])
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            out,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=len(steps[0]),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_steps=10**6,
            max_grad_norm=1.0,
            weight_decay=0.0,
            bf16=bf16,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=True,
        )
        taking.trainer = Trainer(
            LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32),
            config,
            data_collator=lambda rows: dict(batches[rows[0]["sample"]]),
            train_dataset=Dataset.from_dict({"sample": list(range(len(batches)))}),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[taking],
        )
        taking.trainer.train()


if __name__ == "__main__":
    main()
