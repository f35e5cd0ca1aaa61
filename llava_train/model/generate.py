"""Greedy answers to several prompts at once: a packed batch of prompts in, the ids of each answer out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llava_train.batch.packed import PackedBatch
from llava_train.model.onevision import PackedForward


@torch.no_grad()
def generate(
    forward: PackedForward, batch: PackedBatch, max_new_tokens: int, eos_token_ids: list[int], pad_token_id: int
) -> list[list[int]]:
    """Answers to the D prompts that are the documents of `batch`, each without its end token.

    All tiles of the batch pass the vision tower in one call; the prompts are then padded on the left to one length.
    """
    was_training = forward.training
    forward.eval()
    prompts = forward.embed(batch).split(batch.cu_seqlens.diff().tolist())
    longest = batch.max_seqlen
    rows = torch.stack([torch.nn.functional.pad(p, (0, 0, longest - len(p), 0)) for p in prompts])
    mask = torch.stack([torch.arange(longest, device=rows.device) >= longest - len(p) for p in prompts])
    hf_model: Any = forward.hf_model
    with _text_attention(hf_model, "sdpa"):
        answers = hf_model.generate(
            inputs_embeds=rows,
            attention_mask=mask.long(),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_ids,
            pad_token_id=pad_token_id,
        )
    forward.train(was_training)
    return [_until_end(answer, eos_token_ids) for answer in answers.tolist()]


def _until_end(ids: list[int], eos_token_ids: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in eos_token_ids), len(ids))
    return ids[:end]


@contextmanager
def _text_attention(hf_model: Any, name: str) -> Iterator[None]:
    """Other attention in the language model while the context is open: generation needs a cache, packing has none."""
    before = hf_model.config.text_config._attn_implementation
    hf_model.set_attn_implementation({"text_config": name})
    try:
        yield
    finally:
        hf_model.set_attn_implementation({"text_config": before})
