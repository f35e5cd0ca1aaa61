"""The summed cross-entropy: by hand, chunks, gradients, kinds of heads, nothing supervised."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from llava_train.model.forward import loss as loss_module
from llava_train.model.forward.cpu_bf16 import lacks_bf16
from llava_train.model.forward.loss import Head, make_loss

WEIGHT = [[1.0, 0.5], [-0.5, 0.25], [0.0, 2.0]]


class Changed(torch.nn.Linear):
    """A head as another library leaves it."""


def head(weight=WEIGHT, kind=torch.nn.Linear):
    linear = kind(2, 3, bias=False)
    linear.weight.data = torch.tensor(weight)
    return linear


def drawn(rows=9):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, generator=generator), torch.randint(3, (rows,), generator=generator)


def test_sum_by_hand():
    """Logits (0 0 0) and (1 0 0), for targets 1 and 0."""
    states = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    out = make_loss(head([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))(states, torch.tensor([1, 0]))
    assert out.item() == pytest.approx(math.log(3) + math.log(math.e + 2) - 1)


@pytest.mark.parametrize("kind", [torch.nn.Linear, Changed])
@pytest.mark.parametrize("rows", [100, 9, 2, 1])
def test_gradient_is_that_of_torchs_cross_entropy(monkeypatch, kind, rows):
    """However many rows are a chunk."""
    monkeypatch.setattr(loss_module, "ROWS", rows)
    states, targets = drawn()
    seen = []
    for ours in (True, False):
        lm_head, leaf = head(kind=kind), states.clone().requires_grad_()
        value = make_loss(lm_head)(leaf, targets) if ours else cross_entropy(lm_head(leaf), targets, reduction="sum")
        (3 * value).backward()
        seen.append((value.detach(), leaf.grad, lm_head.weight.grad))
    torch.testing.assert_close(*seen)


def test_bf16_loss_is_within_a_thousandth_of_the_one_in_fp32():
    states, targets = drawn(64)
    wide = make_loss(head())(states.bfloat16().float(), targets)
    lm_head = head().bfloat16()
    narrow = make_loss(lm_head)(states.bfloat16().requires_grad_(), targets)
    narrow.backward()
    assert narrow.dtype == torch.float32
    assert abs(narrow.item() / wide.item() - 1) < (1e-6 if lacks_bf16(states.bfloat16()) else 1e-3)
    assert lm_head.weight.grad.dtype == torch.bfloat16


def test_no_logits_outlive_a_chunk(monkeypatch):
    monkeypatch.setattr(loss_module, "ROWS", 2)
    formed, kept = [], []
    plain = loss_module.chunk_loss
    monkeypatch.setattr(loss_module, "chunk_loss", lambda *given: formed.append(len(given[0])) or plain(*given))
    states, targets = drawn()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        make_loss(head())(states.requires_grad_(), targets)
    assert formed == [2, 2, 2, 2, 1]
    assert sorted(kept) == [(3, 2), (9, 2)]  # the gradients


def test_nothing_is_kept_without_a_gradient(monkeypatch):
    lm_head = head()
    loss = make_loss(lm_head)
    with torch.no_grad():
        assert not loss(*drawn()).requires_grad
    calls = []
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *given: calls.append(given))
    lm_head.weight.requires_grad_(False)
    loss(drawn()[0].requires_grad_(), drawn()[1]).backward()
    with torch.no_grad():
        loss(*drawn())
    assert not calls
    assert lm_head.weight.grad is None


def test_head_stays_the_same_layer():
    lm_head = head()
    weight, states = lm_head.weight, drawn()[0]
    expected = lm_head(states)
    make_loss(lm_head)
    assert isinstance(lm_head, Head)
    assert lm_head.weight is weight
    assert list(lm_head.state_dict()) == ["weight"]
    torch.testing.assert_close(lm_head(states), expected)


def test_nothing_supervised_gives_zero_with_zero_gradients():
    states, lm_head = torch.randn(0, 2, requires_grad=True), head()
    value = make_loss(lm_head)(states, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == 0
    assert lm_head.weight.grad.abs().sum() == 0
