"""The one loss: cross-entropy summed over supervised tokens, which training and evaluation divide by their count."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from llava_train.batch.packed import IGNORE_INDEX

ROWS_IN_FP32 = 2048  # logits upcast at a time: 2048 rows of 152,064 are 1.2 GB


def summed_cross_entropy(hidden: torch.Tensor, lm_head: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the supervised tokens of -log p(token), as fp32 scalar; 0 with a graph where nothing is supervised.

    hidden [T, h] and labels int64 [T] lie under the same tokens; the shift is here: state t predicts label t + 1.
    Worked case: labels [-100 -100 7 8 -100 9] take the states at 1, 2 and 4. lm_head runs once, on those rows only, so
    every rank gathers it once whatever its batch.
    """
    states = (labels[1:] != IGNORE_INDEX).nonzero().squeeze(1)
    logits, targets = lm_head(hidden[states]), labels[states + 1]
    total = torch.zeros((), device=logits.device)
    for rows, wanted in zip(logits.split(ROWS_IN_FP32), targets.split(ROWS_IN_FP32), strict=True):
        total = total + checkpoint(_sum_in_fp32, rows, wanted, use_reentrant=False)
    return total


def _sum_in_fp32(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, reduction="sum")
