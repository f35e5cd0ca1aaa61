"""ms-swift's Seq2SeqTrainer, one sample at a time with accumulation, on the samples as they are.

Its processor would need torchvision, so it is given the tokenizer: the samples come as tensors.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from hf_turns import ARGUMENTS, InOrder, Taking
from turns import Turns, hf_batch, read_steps, settings


def main() -> None:
    told = settings()
    turns = Turns()
    transformers.AutoProcessor.from_pretrained = transformers.AutoTokenizer.from_pretrained
    from datasets import Dataset
    from swift import get_model_processor, get_template
    from swift.trainers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    class Trainer(InOrder, Seq2SeqTrainer):
        def _get_data_collator(self, *_: Any) -> Any:
            return lambda rows: dict(batches[rows[0]["sample"]])

    steps = read_steps(told["folder"])
    batches = [hf_batch([sample], torch.float32) for samples in steps for sample in samples]
    model, processor = get_model_processor(
        f"{told['folder']}/model", model_type="llava_onevision_hf", torch_dtype=torch.float32, device_map="cpu"
    )
    template = get_template(processor, template_type="chatml")
    template.set_mode("train")
    with tempfile.TemporaryDirectory() as out:
        arguments = Seq2SeqTrainingArguments(
            out,
            **ARGUMENTS,
            gradient_accumulation_steps=len(steps[0]),
            warmup_ratio=0.0,
            bf16=told["precision"] == "bf16",
            eval_strategy="no",
            train_dataloader_shuffle=False,
            check_model=False,
        )
        rows = Dataset.from_dict({"sample": list(range(len(batches)))})
        taking = Taking(turns, steps)
        taking.trainer = Trainer(model=model, args=arguments, template=template, train_dataset=rows)
        taking.trainer.add_callback(taking)
        taking.trainer.train()


if __name__ == "__main__":
    main()
