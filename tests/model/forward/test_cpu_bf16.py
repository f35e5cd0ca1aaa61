"""bf16 layers that multiply in fp32 against a derivation in fp32, and against what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llava_train.model.forward import cpu_bf16

CPU = torch.device("cpu")


@pytest.fixture
def without_bf16(monkeypatch):
    """Whatever the CPU of the test has."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


@pytest.mark.parametrize("bias", [True, False])
def test_a_bf16_linear_layer_is_the_fp32_one_rounded_in_output_and_gradients(without_bf16, bias):
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=bias, dtype=torch.bfloat16)
    cpu_bf16.widen_products(nn.Sequential(layer), CPU)
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    leaves = (x, *layer.parameters())
    ours = (layer(x), *torch.autograd.grad(layer(x), leaves, grad))

    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    expected = nn.functional.linear(*wide)
    theirs = (expected, *torch.autograd.grad(expected, wide, grad.float()))
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, its.bfloat16(), rtol=0, atol=0)


def test_a_bf16_convolution_is_the_fp32_one_rounded(without_bf16):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 4, stride=4, dtype=torch.bfloat16)
    cpu_bf16.widen_products(nn.Sequential(layer), CPU)
    x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    expected = nn.functional.conv2d(x.float(), layer.weight.float(), layer.bias.float(), stride=4)
    torch.testing.assert_close(layer(x), expected.bfloat16(), rtol=0, atol=0)


def test_fp32_layers_compute_as_they_did():
    layer = nn.Linear(8, 4)
    x = torch.randn(3, 8)
    expected = layer(x)
    cpu_bf16.widen_products(layer, CPU)
    assert torch.equal(layer(x), expected)
    assert not cpu_bf16.lacks_bf16(x)


@pytest.mark.parametrize(("device", "has_bf16"), [("meta", False), ("cpu", True)])
def test_no_layer_is_changed_on_a_gpu_or_on_a_cpu_with_bf16(monkeypatch, device, has_bf16):
    """`meta` stands in for a device that is no CPU."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    layers = nn.Sequential(nn.Linear(8, 4), nn.Conv2d(3, 8, 4))
    cpu_bf16.widen_products(layers, torch.device(device))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Conv2d]
