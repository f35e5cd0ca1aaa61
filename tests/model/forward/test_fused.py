"""Norms and gates in fewer passes against transformers' own modules."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

from llava_train.model.forward.fused import compile_gates, fuse_norms


@pytest.mark.parametrize("kind", [Qwen2RMSNorm, LlamaRMSNorm])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_a_fused_norm_and_its_gradients_are_those_of_transformers(kind, dtype, near):
    """near: relative, by norm; in bf16 one rounding more or less of half a unit, 2^-9, each way."""
    torch.manual_seed(0)
    theirs = kind(64, 1e-6).to(dtype)
    nn.init.normal_(theirs.weight, 1, 0.3)
    ours = nn.Sequential(deepcopy(theirs))
    fuse_norms(ours)
    fuse_norms(ours)  # a second time changes nothing
    assert type(ours[0]).forward is not kind.forward
    assert isinstance(ours[0], kind)
    grad = torch.randn(5, 7, 64).to(dtype)
    seen = []
    for module in (ours, theirs):
        x = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        out = module(x)
        seen.append((out, *torch.autograd.grad(out, [x, *module.parameters()], grad)))
    for mine, its in zip(*seen, strict=True):
        assert mine.dtype == dtype
        assert (mine - its).float().norm() <= near * its.float().norm()


def test_other_norms_are_left_alone():
    layers = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8))
    fuse_norms(layers)
    assert [type(layer) for layer in layers] == [nn.LayerNorm, nn.RMSNorm]


def test_compiled_gates_give_the_same_mlp_by_one_graph(monkeypatch):
    compiled = []

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    theirs = nn.ModuleList(Qwen2MLP(Qwen2Config(hidden_size=8, intermediate_size=16)) for _ in range(3))
    ours = deepcopy(theirs)
    compile_gates(ours)
    for length in (5, 9, 30):
        x = torch.randn(1, length, 8, generator=torch.Generator().manual_seed(length))
        seen = []
        for mlps in (ours, theirs):
            out = mlps[2](mlps[1](mlps[0](x)))
            seen.append((out, *torch.autograd.grad(out.sum(), list(mlps.parameters()))))
        torch.testing.assert_close(*seen)
    assert len(compiled) == 1
    torch._dynamo.reset()


def test_mlps_with_another_activation_are_left_alone():
    mlp = Qwen2MLP(Qwen2Config(hidden_size=8, intermediate_size=16, hidden_act="gelu"))
    compile_gates(mlp)
    assert type(mlp) is Qwen2MLP
