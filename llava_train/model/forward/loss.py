"""The one loss: cross-entropy summed over supervised tokens, which training and evaluation divide by their count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llava_train.model.forward.cpu_bf16 import lacks_bf16, multiply

ROWS = 2048  # whose logits are held at a time: 2048 rows of 152,064 are 0.6 GB in bf16, and 1.2 GB in fp32

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ChunkLoss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_loss(lm_head: nn.Module, compiled: bool = False) -> Loss:
    """The sum of -log p(target), fp32 scalar, of hidden states [S, h] and the ids int64 [S] that follow them.

    It is 0, with a graph, where there are none. A plain head goes on to the loss itself, so that no logits outlive a
    chunk of rows; it stays one call of `lm_head` whatever the batch, since at ZeRO-3 every rank gathers its weight
    there. Of a head that another library has changed (adapters, weights elsewhere) logits are taken as they come.
    compiled: what is formed of a chunk's logits is one pass over them, by torch.compile.
    """
    of_chunk = torch.compile(chunk_loss, dynamic=True) if compiled else chunk_loss
    if type(lm_head) is nn.Linear and lm_head.bias is None and "forward" not in vars(lm_head):
        lm_head.__class__ = Head  # the same layer, whose forward can do more
    if isinstance(lm_head, Head):
        return lambda states, targets: lm_head(states, targets, of_chunk)
    return lambda states, targets: _Summed.apply(lm_head(states), None, targets, of_chunk)  # type: ignore[no-untyped-call]


class Head(nn.Linear):
    """A head without bias; asked for targets as well, it answers with their summed cross-entropy in place of logits."""

    def forward(
        self, x: torch.Tensor, targets: torch.Tensor | None = None, of_chunk: ChunkLoss | None = None
    ) -> torch.Tensor:
        if targets is None:
            return multiply(self, x)
        weight = self.weight if torch.is_grad_enabled() else self.weight.detach()  # a Function asks its inputs alone
        return _Summed.apply(x, weight, targets, of_chunk)  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """The gradient is made in the forward, chunk by chunk: logits are formed once, and none is kept.

    states [S, h], weight [vocabulary, h], targets int64 [S] -> fp32 scalar; without a weight the states are the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor | None, targets: torch.Tensor, of_chunk: ChunkLoss
    ) -> torch.Tensor:
        needs_states, needs_weight, *_ = ctx.needs_input_grad
        head = weight.float() if weight is not None and lacks_bf16(states) else weight
        total = torch.zeros((), device=states.device)
        to_states = torch.zeros_like(states) if needs_states else None
        to_weight = torch.zeros_like(head) if head is not None and needs_weight else None
        for start in range(0, len(states), ROWS):
            rows = slice(start, start + ROWS)
            inside = states[rows] if head is None else states[rows].to(head.dtype)
            logits = inside if head is None else inside @ head.t()
            value, grad = of_chunk(logits, targets[rows])
            total += value
            if to_states is not None:
                to_states[rows] = grad if head is None else grad @ head
            if to_weight is not None:
                to_weight.addmm_(grad.t(), inside)
        ctx.save_for_backward(to_states, to_weight)
        ctx.dtypes = states.dtype, None if weight is None else weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if grad is None else grad.mul_(scale).to(dtype) for grad, dtype in pairs), None, None


def chunk_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy, fp32 scalar, and its gradient in the dtype of `logits` [S, vocabulary].

    The gradient of a logit is its probability, less 1 for the target. Both are formed in fp32.
    """
    wanted = targets[:, None]
    logs = logits.log_softmax(-1, dtype=torch.float32)
    value = -logs.gather(1, wanted).sum()
    grad = logs.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
    return value, grad.to(logits.dtype)
