"""The hidden state of a vision tower that the projector reads."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from llava_train.shared.module_device import device_of


def siglip_features(tower: Any, pixels: torch.Tensor, num_layers: int) -> torch.Tensor:
    """uint8 tiles [N, 3, S, S] -> [N, patches, vision hidden] after `num_layers` layers, before `post_layernorm`.

    No graph is kept where the tower is frozen: nothing below it trains.
    """
    pixels = (pixels.float() / 255 - 0.5) / 0.5
    trains = any(parameter.requires_grad for parameter in tower.parameters())
    with nullcontext() if trains else torch.no_grad():
        # the patches leave the embeddings transposed, and every layer would run on strided rows
        hidden = tower.embeddings(pixels.to(device_of(tower.embeddings), tower.dtype)).contiguous()
        for layer in tower.encoder.layers[:num_layers]:
            hidden = layer(hidden.to(device_of(layer)), None)
    return hidden
