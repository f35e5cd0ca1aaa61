"""The weights that neither the language model nor the tower brings: projector and newline."""

from __future__ import annotations

import math

import torch
from torch import nn

from llava_train.family.base import HFModel


def draw(hf_model: HFModel, dtype: torch.dtype, seed: int) -> None:
    """Linear layers as torch's own default draws them, image_newline with std 1/sqrt(hidden): LLaVA-NeXT, b42941c."""
    generator = torch.Generator().manual_seed(seed)
    projector = hf_model.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for linear in (projector.linear_1, projector.linear_2):
            bound = 1 / math.sqrt(linear.in_features)
            for parameter in linear.parameters():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    hidden = projector.linear_2.out_features
    newline = torch.empty(hidden).normal_(std=1 / math.sqrt(hidden), generator=generator)
    hf_model.model.image_newline = nn.Parameter(newline.to(dtype))
