"""ms-swift's Seq2SeqTrainer, one sample at a time with accumulation, on the samples as they are.

Its processor would need torchvision, so it is given the tokenizer: the samples come as tensors.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from turns import LEARNING_RATE, Turns, hf_batch, num_tokens, read_steps, settings


class Taking(transformers.TrainerCallback):
    """Takes turns between the trainer's steps."""

    def __init__(self, turns: Turns, tokens: list[int]):
        self.turns, self.tokens, self.loss = turns, tokens, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.turns.wait()

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        loss, self.loss = self.loss, 0.0
        self.turns.done(loss, self.tokens[(state.global_step - 1) % len(self.tokens)])


def main() -> None:
    told = settings()
    turns = Turns()
    transformers.AutoProcessor.from_pretrained = transformers.AutoTokenizer.from_pretrained
    from datasets import Dataset
    from swift import get_model_processor, get_template
    from swift.trainers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    class Trainer(Seq2SeqTrainer):
        """In the order of the samples; keeps the losses of a step."""

        def _get_data_collator(self, *_: Any) -> Any:
            return lambda rows: dict(batches[rows[0]["sample"]])

        def _get_train_sampler(self, *_: Any) -> torch.utils.data.SequentialSampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            taking.loss += float(loss)
            return loss

    steps = read_steps(told["folder"])
    batches = [hf_batch([sample], torch.float32) for samples in steps for sample in samples]
    taking = Taking(turns, [num_tokens(samples) for samples in steps])
    model, processor = get_model_processor(
        f"{told['folder']}/model", model_type="llava_onevision_hf", torch_dtype=torch.float32, device_map="cpu"
    )
    template = get_template(processor, template_type="chatml")
    template.set_mode("train")
    with tempfile.TemporaryDirectory() as out:
        arguments = Seq2SeqTrainingArguments(
            out,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=len(steps[0]),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_steps=10**6,
            max_grad_norm=1.0,
            adam_beta2=0.999,
            weight_decay=0.0,
            warmup_ratio=0.0,
            bf16=told["precision"] == "bf16",
            use_cpu=True,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            train_dataloader_shuffle=False,
            check_model=False,
            disable_tqdm=True,
        )
        rows = Dataset.from_dict({"sample": list(range(len(batches)))})
        trainer = Trainer(model=model, args=arguments, template=template, train_dataset=rows)
        trainer.add_callback(taking)
        trainer.train()


if __name__ == "__main__":
    main()
