"""TRL's SFTTrainer, one sample at a time with accumulation, on the samples as they are."""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from hf_turns import ARGUMENTS, InOrder, Taking
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from trl import SFTConfig, SFTTrainer
from turns import Turns, hf_batch, read_steps, settings


class Trainer(InOrder, SFTTrainer):
    pass


def main() -> None:
    told = settings()
    turns = Turns()
    folder, steps = f"{told['folder']}/model", read_steps(told["folder"])
    batches = [hf_batch([sample], torch.float32) for samples in steps for sample in samples]
    taking = Taking(turns, steps)
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            out,
            **ARGUMENTS,
            gradient_accumulation_steps=len(steps[0]),
            bf16=told["precision"] == "bf16",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
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
