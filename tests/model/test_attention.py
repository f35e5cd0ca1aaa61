"""Packed attention against a dense mask written by hand; the choice of a kernel."""

from __future__ import annotations

import pytest
import torch

from llava_train.config.errors import ConfigError
from llava_train.model.attention import Documents, choose_kernel, packed_attention

LENGTHS = [3, 5, 5, 1, 5]
CPU = torch.device("cpu")


def test_packed_attention_equals_dense_causal_attention_within_documents():
    torch.manual_seed(0)
    total = sum(LENGTHS)
    query = torch.randn(1, 4, total, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(1, 2, total, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bounds = torch.tensor([0, 3, 8, 13, 14, 19], dtype=torch.int32)
    out, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, documents=Documents(bounds, 5, "sdpa"), scaling=0.3
    )

    owner = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    visible = (owner[:, None] == owner[None]) & torch.ones(total, total).tril().bool()
    keys, values = (x.repeat_interleave(2, dim=1) for x in (key, value))
    scores = (query @ keys.transpose(2, 3) * 0.3).masked_fill(~visible, -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2)

    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(expected)
    inputs = (query, key, value)
    ours = torch.autograd.grad((out * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


def test_auto_takes_sdpa_on_cpu_and_in_fp32():
    assert choose_kernel("auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_kernel("auto", torch.device("cuda"), torch.float32) == "sdpa"


@pytest.mark.parametrize("choice", ["flash_attn", "varlen"])
def test_a_kernel_that_cannot_run_is_named_with_the_remedy(choice):
    with pytest.raises(ConfigError, match=f"model.attention: {choice}: needs a CUDA device and bf16.*") as error:
        choose_kernel(choice, CPU, torch.bfloat16)
    assert error.value.faults[0].remedy == "set model.attention=auto"


def test_sliding_window_shorter_than_a_document_is_refused():
    row = torch.zeros(1, 1, 4, 8)
    documents = Documents(torch.tensor([0, 4], dtype=torch.int32), 4, "sdpa")
    with pytest.raises(ValueError, match="sliding-window"):
        packed_attention(torch.nn.Identity(), row, row, row, None, documents=documents, scaling=1.0, sliding_window=2)
