"""The summed cross-entropy: shift, supervision, chunks, nothing supervised."""

from __future__ import annotations

import math

import pytest
import torch

from llava_train.model import loss as loss_module
from llava_train.model.loss import summed_cross_entropy


def head(weight):
    linear = torch.nn.Linear(2, 3, bias=False)
    linear.weight.data = torch.tensor(weight)
    return linear


def test_sum_by_hand():
    """State t predicts label t + 1: states 0 and 2 give logits (0 0 0) and (1 0 0), for labels 1 and 0."""
    states = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 0.0], [5.0, 5.0]])
    labels = torch.tensor([-100, 1, -100, 0])
    out = summed_cross_entropy(states, head([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), labels)
    assert out.item() == pytest.approx(math.log(3) + math.log(math.e + 2) - 1)


def test_chunks_change_neither_loss_nor_gradient(monkeypatch):
    torch.manual_seed(0)
    states, labels = torch.randn(9, 2), torch.tensor([-100, 1, 2, 0, -100, 1, 1, 0, 2])
    seen = []
    for rows in (100, 2):
        monkeypatch.setattr(loss_module, "ROWS_IN_FP32", rows)
        lm_head = head([[1.0, 0.5], [-0.5, 0.25], [0.0, 2.0]])
        value = summed_cross_entropy(states, lm_head, labels)
        value.backward()
        seen.append((value.detach(), lm_head.weight.grad))
    torch.testing.assert_close(seen[0], seen[1])


def test_nothing_supervised_gives_zero_with_zero_gradients():
    states, lm_head = torch.randn(4, 2, requires_grad=True), head([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    value = summed_cross_entropy(states, lm_head, torch.full((4,), -100))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == 0
    assert states.grad.abs().sum() == 0
    assert lm_head.weight.grad.abs().sum() == 0


def test_gradient_is_that_of_torchs_cross_entropy():
    torch.manual_seed(0)
    states, labels = torch.randn(9, 2), torch.tensor([-100, 1, 2, 0, -100, 1, 1, 0, 2])
    gradients = []
    for ours in (True, False):
        lm_head, leaf = head([[1.0, 0.5], [-0.5, 0.25], [0.0, 2.0]]), states.clone().requires_grad_()
        if ours:
            value = summed_cross_entropy(leaf, lm_head, labels)
        else:
            value = torch.nn.functional.cross_entropy(lm_head(leaf[:-1]), labels[1:], reduction="sum")
        (3 * value).backward()
        gradients.append((value.detach(), leaf.grad, lm_head.weight.grad))
    torch.testing.assert_close(*gradients)
