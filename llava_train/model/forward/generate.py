"""Answers to several prompts at once: a packed batch of prompts in, the ids of each answer out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from llava_train.batch.packed import PackedBatch
from llava_train.model.forward.packed_forward import PackedForward


@torch.no_grad()
def generate(
    forward: PackedForward,
    batch: PackedBatch,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    **options: Any,
) -> list[list[int]]:
    """Answers to the D prompts that are the documents of `batch`, each without its end token.

    All tiles of the batch pass the vision tower in one call; the prompts are then padded on the left to one length.
    options: of transformers' `generate`; greedy where none are given.
    """
    was_training = forward.training
    forward.eval()
    lengths = batch.cu_seqlens.diff().tolist()
    longest = batch.max_seqlen
    gaps = [longest - length for length in lengths]
    rows = torch.stack(
        [pad(row, (0, 0, gap, 0)) for row, gap in zip(forward.embed(batch).split(lengths), gaps, strict=True)]
    )
    prompts = zip(batch.input_ids.split(lengths), gaps, strict=True)
    ids = torch.stack([pad(prompt, (gap, 0), value=pad_token_id) for prompt, gap in prompts])  # for penalties alone
    mask = torch.arange(longest, device=ids.device) >= torch.tensor(gaps, device=ids.device)[:, None]
    hf_model: Any = forward.hf_model
    with _text_attention(hf_model, "sdpa"):
        answers = hf_model.generate(
            input_ids=ids,
            inputs_embeds=rows,
            attention_mask=mask.long(),
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_ids,
            pad_token_id=pad_token_id,
            **{"do_sample": False, **options},
        )
    forward.train(was_training)
    return [_until_end(answer, eos_token_ids) for answer in answers[:, longest:].tolist()]


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
