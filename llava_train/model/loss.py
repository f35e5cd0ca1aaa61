"""The one loss: cross-entropy summed over supervised tokens, which training and evaluation divide by their count."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llava_train.batch.packed import IGNORE_INDEX

ROWS_IN_FP32 = 2048  # logits upcast at a time: 2048 rows of 152,064 are 1.2 GB


def summed_cross_entropy(hidden: torch.Tensor, lm_head: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the supervised tokens of -log p(token), as fp32 scalar; 0 with a graph where nothing is supervised.

    hidden [T, h] and labels int64 [T] lie under the same tokens; the shift is here: state t predicts label t + 1.
    Worked case: labels [-100 -100 7 8 -100 9] take the states at 1, 2 and 4. lm_head runs once, on those rows only, so
    every rank gathers it once whatever its batch.
    """
    states = (labels[1:] != IGNORE_INDEX).nonzero().squeeze(1)
    return _Summed.apply(lm_head(hidden[states]), labels[states + 1])  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """The gradient is made in the forward, chunk by chunk, so that no chunk is upcast a second time.

    logits [S, vocabulary], targets int64 [S] -> fp32 scalar. The gradient of a logit is its probability, less 1 for the
    target; it is kept in the dtype of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=logits.device)
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), ROWS_IN_FP32):
            rows = slice(start, start + ROWS_IN_FP32)
            wanted = targets[rows, None]
            logs = logits[rows].log_softmax(-1, dtype=torch.float32)
            total -= logs.gather(1, wanted).sum()
            if grad is not None:
                grad[rows] = logs.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (grad,) = ctx.saved_tensors
        return grad * scale, None
