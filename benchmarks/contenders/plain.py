"""A plain loop over transformers' model: padded batches, or single samples with accumulation, with all logits or few.

way padded: the step's samples in one batch. way single: one after the other. way supervised: likewise, and logits only
where a token is supervised. In bf16 the weights are fp32 and the forward runs under autocast.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from transformers import LlavaOnevisionForConditionalGeneration
from turns import (
    IGNORE_INDEX,
    LEARNING_RATE,
    Turns,
    endless,
    hf_batch,
    num_supervised,
    num_tokens,
    read_steps,
    settings,
)


def loss_of(model: torch.nn.Module, batch: dict[str, torch.Tensor], way: str, supervised: int) -> torch.Tensor:
    """Share of the micro-batch in the mean over the step's supervised tokens."""
    if way != "supervised":
        return model(**batch, num_items_in_batch=supervised, use_cache=False).loss
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"][0]
    states = (labels[1:] != IGNORE_INDEX).nonzero().squeeze(1)
    logits = model(**inputs, logits_to_keep=states, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), labels[states + 1], reduction="sum") / supervised


def main() -> None:
    told = settings()
    turns = Turns()
    way, bf16, device = told["way"], told["precision"] == "bf16", told["device"]
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(f"{told['folder']}/model", dtype=torch.float32)
    model.to(device).train()
    if told["recompute"]:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    steps = []
    for samples in read_steps(told["folder"]):
        micro = [samples] if way == "padded" else [[sample] for sample in samples]
        batches = [hf_batch(one, torch.float32) for one in micro]  # on the host, as ours are
        steps.append((batches, num_supervised(samples), num_tokens(samples)))
    turns.wait()
    for batches, supervised, tokens in endless(steps):
        total = 0.0
        for held in batches:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in held.items()}
            with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
                loss = loss_of(model, batch, way, supervised)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.done(total, tokens)


if __name__ == "__main__":
    main()
