"""Gradient checkpointing of the layers that a rank's memory cannot spare.

Enters: a stage's settings and the ranks. Leaves: how many layers run forward again, the same on every rank, since at
ZeRO 3 they gather these layers' weights together; and a model set to it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from llava_train.config.schema import StageConfig
from llava_train.family.onevision.cost import ModelDims, Recomputed
from llava_train.family.onevision.memory import recomputed_layers
from llava_train.model.memory import available_memory
from llava_train.train.distributed import Ranks


def choose_layers(dims: ModelDims, settings: StageConfig, ranks: Ranks) -> Recomputed:
    """Under gradient_checkpointing=auto by the smallest GPU, or by a rank's share of what the host has left."""
    memory = 0.0
    if settings.gradient_checkpointing == "auto":
        memory = min(ranks.gather(_memory(ranks)))
    return recomputed_layers(dims, settings, ranks.world_size, memory)


def _memory(ranks: Ranks) -> float:
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory
    return available_memory() / ranks.world_size


def recompute(hf_model: LlavaOnevisionForConditionalGeneration, recomputed: Recomputed) -> None:
    """Sets the first layers of tower and language model to run forward again, and the others to keep what they need.

    The first, since in the backward their turn comes when what the others kept is gone.
    """
    if not (recomputed.tower or recomputed.language):
        return
    hf_model.activation_checkpointing_enable({"use_reentrant": False})
    model: Any = hf_model.model
    for layers, again in (
        (model.vision_tower.encoder.layers, recomputed.tower),
        (model.language_model.layers, recomputed.language),
    ):
        for number, layer in enumerate(layers):
            layer.gradient_checkpointing = number < again
