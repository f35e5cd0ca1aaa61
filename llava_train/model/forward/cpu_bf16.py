"""bf16 weights on a CPU that has no bf16 instructions: matrix products in fp32, rounded to bf16.

torch runs bf16 products on such a CPU at 1 to 30 GFLOP/s where it runs fp32 ones at 75 (docs/performance.md), so what
enters is widened, multiplied in fp32 and rounded. The product is the bf16 one with its sums in fp32, as GPUs form it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


def lacks_bf16(tensor: torch.Tensor) -> bool:
    """Whether products of this tensor would run in bf16 on a CPU without instructions for it."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.bfloat16
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def widen_products(module: nn.Module, device: torch.device) -> None:
    """Lets the linear and convolution layers in `module` widen bf16 input where the CPU has no bf16. Shapes stay.

    device: where they compute. On a GPU, and on a CPU with bf16, nothing is changed. They become layers of a class of
    ours, which torch.compile takes as one: a forward of each layer's own would cost a graph of its own. A layer whose
    forward another library has replaced (accelerate, to fetch its weights) is left to it.
    """
    if not lacks_bf16(torch.empty(0, device=device, dtype=torch.bfloat16)):
        return
    for layer in module.modules():
        if (wide := WIDE.get(type(layer))) and "forward" not in vars(layer):
            layer.__class__ = wide


def multiply(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if not lacks_bf16(x):
        return linear(x, layer.weight, layer.bias)
    return _Widened.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]


class _WideLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return multiply(self, input)


class _WideConvolution(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _convolution(self, input)


WIDE: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _WideLinear, nn.Conv2d: _WideConvolution}


def _convolution(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    if not lacks_bf16(x):
        return layer._conv_forward(x, layer.weight, layer.bias)
    bias = None if layer.bias is None else layer.bias.float()
    return layer._conv_forward(x.float(), layer.weight.float(), bias).to(x.dtype)


class _Widened(torch.autograd.Function):
    """Keeps its input and weight in bf16 and widens them again in the backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        wide = grad.float()
        rows = wide.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        to_x = (wide @ weight.float()).to(x.dtype) if needs_x else None
        to_weight = (rows.t() @ x.flatten(0, -2).float()).to(weight.dtype) if needs_weight else None
        to_bias = rows.sum(0).to(weight.dtype) if ctx.has_bias and needs_bias else None
        return to_x, to_weight, to_bias
