"""How the layers of tower and language model run: which of them twice, and whether compiled.

Enters: a stage's settings and the ranks. Leaves: how many layers run forward again in the backward, the same on every
rank, since at ZeRO 3 they gather these layers' weights together; and a model set to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from llava_train.config.schema import StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.costs.flops import Recomputed
from llava_train.costs.memory import recomputed_layers
from llava_train.family.base import HFModel
from llava_train.model.forward.fused import compile_gates
from llava_train.ranks.process_group import Ranks
from llava_train.shared.host_memory import available_memory


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


def set_layers(
    hf_model: HFModel,
    recomputed: Recomputed,
    compiled: bool = False,
    zero_level: int = 0,
) -> None:
    """Lets the first layers run forward again, and the others keep what they need; compiled: by torch.compile.

    At ZeRO 3, where layers fetch their weights while they run, the gates of their MLPs alone are compiled.

    The first, since in the backward their turn comes when what the others kept is gone. Lengths are dynamic: one graph
    serves all packs, which need no padding to sizes of their own.
    """
    if recomputed.tower or recomputed.language:
        hf_model.activation_checkpointing_enable({"use_reentrant": False})
    model: Any = hf_model.model
    whole = compiled and zero_level < 3
    if compiled and not whole:
        compile_gates(model.language_model)
    for layers, again in (
        (model.vision_tower.encoder.layers, recomputed.tower),
        (model.language_model.layers, recomputed.language),
    ):
        for number, layer in enumerate(layers):
            layer.gradient_checkpointing = number < again
            if whole and layer.gradient_checkpointing:
                layer._gradient_checkpointing_func = _checkpoint_compiled
            elif whole:
                layer.compile(dynamic=True)


def _checkpoint_compiled(run: Callable[..., Any], *given: Any) -> Any:
    """transformers hands over a layer's forward. What is compiled must lie inside: around attention, which is not, a
    compiled layer would fall back to an eager one."""
    assert isinstance(run, partial)
    compiled = partial(_compile(run.func), *run.args, **run.keywords)
    return checkpoint(compiled, *given, use_reentrant=False)


@lru_cache
def _compile(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Once for all layers of a kind."""
    return torch.compile(forward, dynamic=True)
