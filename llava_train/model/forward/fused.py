"""Elementwise work of the language model in fewer passes over memory, which is what it costs on a GPU.

Norms: torch's own operator, in one pass where transformers takes eight. It rounds once, after the weight, where
transformers rounds to bf16 before it, so that bf16 outputs may differ in their last bit. Gates: the product within a
SwiGLU MLP, one kernel by torch.compile, for where whole layers cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn.functional import rms_norm, silu
from transformers.activations import SiLUActivation

Gate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fuse_norms(module: nn.Module) -> None:
    """Lets the RMS norms in `module` (transformers' classes of that name) call torch's operator. Weights stay."""
    for part in module.modules():
        if type(part).__name__.endswith("RMSNorm") and hasattr(part, "variance_epsilon"):
            _put_before(part, _Norm)


def compile_gates(module: nn.Module) -> None:
    """Compiles the product of gate and input in the SwiGLU MLPs in `module`, one kernel for all of them and any length.

    It takes activations alone: at ZeRO 3 the layers around it fetch their weights, which no compiled graph can do.
    """
    gate = torch.compile(gated, dynamic=True)
    for part in module.modules():
        if hasattr(part, "gate_proj") and isinstance(part.act_fn, nn.SiLU | SiLUActivation):
            _put_before(part, _Mlp)
            vars(part)["gate"] = gate


def gated(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return silu(gate) * x


def _put_before(part: nn.Module, own: type[nn.Module]) -> None:
    """Makes `part` one of `own`, whose forward comes first."""
    kind = type(part)
    if not issubclass(kind, own):
        part.__class__ = _joined(own, kind)  # type: ignore[arg-type]


@cache  # one class for all parts of a kind: torch.compile makes a graph for each class
def _joined(own: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (own, kind), {})


class _Norm(nn.Module):
    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, hidden_states.shape[-1:], self.weight, self.variance_epsilon)


class _Mlp(nn.Module):
    gate: Gate
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate(self.gate_proj(x), self.up_proj(x)))
