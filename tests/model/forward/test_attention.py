"""Packed attention against a dense mask written by hand; the choice of a kernel."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from llava_train.model.forward import attention
from llava_train.model.forward.attention import Documents, choose_kernel, packed_attention, tile_attention
from llava_train.model.forward.cpu_attention import BLOCK
from llava_train.shared.errors import ConfigError

LENGTHS = [3, 5, 5, 1, 5]
CPU = torch.device("cpu")


def dense(query, key, value, lengths, scaling):
    """With a mask written by hand."""
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    visible = (owner[:, None] == owner[None]) & torch.ones(len(owner), len(owner)).tril().bool()
    keys, values = (x.repeat_interleave(2, dim=1) for x in (key, value))
    scores = (query @ keys.transpose(2, 3) * scaling).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


@pytest.mark.parametrize("longest_blocked", [0, 768], ids=["whole", "blocked"])
@pytest.mark.parametrize("lengths", [LENGTHS, [BLOCK, 1, BLOCK + 1, 2 * BLOCK, 300, 300]], ids=["short", "blocks"])
def test_packed_attention_equals_dense_causal_attention_within_documents(monkeypatch, longest_blocked, lengths):
    monkeypatch.setattr(attention, "LONGEST_BLOCKED", longest_blocked)
    torch.manual_seed(0)
    total = sum(lengths)
    query = torch.randn(1, 4, total, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(1, 2, total, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    documents = Documents(bounds, max(lengths), "sdpa")
    out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, documents=documents, scaling=0.3)

    expected = dense(query, key, value, lengths, 0.3)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(expected)
    inputs = (query, key, value)
    ours = torch.autograd.grad((out * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("longest_blocked", [0, 768], ids=["whole", "blocked"])
@pytest.mark.parametrize("has_bf16", [False, True], ids=["widened", "bf16"])
def test_bf16_attention_is_the_fp32_one_rounded(monkeypatch, longest_blocked, has_bf16):
    """Rounded once where the CPU has no bf16, and elsewhere at each product."""
    monkeypatch.setattr(attention, "LONGEST_BLOCKED", longest_blocked)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    torch.manual_seed(0)
    row = [torch.randn(1, heads, 150, 8).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    documents = Documents(torch.tensor([0, 150], dtype=torch.int32), 150, "sdpa")
    out, _ = packed_attention(torch.nn.Identity(), *row, None, documents=documents, scaling=0.3)
    wide = [x.detach().float().requires_grad_() for x in row]
    expected = dense(*wide, [150], 0.3)
    weights = torch.randn_like(expected)
    ours = (out, *torch.autograd.grad(out, row, weights.bfloat16()))
    theirs = (expected, *torch.autograd.grad(expected, wide, weights.bfloat16().float()))
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        near = 0.02 if has_bf16 else 0.005
        assert (mine.float() - its).norm() < near * its.norm()


@pytest.mark.parametrize("longest_blocked", [0, 768], ids=["whole", "blocked"])
def test_tile_attention_equals_softmax_by_hand(monkeypatch, longest_blocked):
    monkeypatch.setattr(attention, "LONGEST_BLOCKED", longest_blocked)
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, 7, 8, dtype=torch.float64) for _ in range(3))
    out, _ = tile_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3)
    scores = torch.einsum("nhqd,nhkd->nhqk", query, key) * 0.3
    torch.testing.assert_close(out, torch.einsum("nhqk,nhkd->nqhd", scores.softmax(-1), value))


def test_auto_takes_sdpa_on_cpu_and_in_fp32():
    assert choose_kernel("auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_kernel("auto", torch.device("cuda"), torch.float32) == "sdpa"


@pytest.fixture
def fresh_choice():
    choose_kernel.cache_clear()
    yield
    choose_kernel.cache_clear()


@pytest.mark.parametrize(
    ("capability", "flash_attn", "chosen"),
    [
        ((9, 0), "sound", "flash_attn"),
        ((9, 0), "absent", "varlen"),
        ((9, 0), "built for another torch", "varlen"),
        ((7, 5), "sound", "sdpa"),
    ],
)
def test_auto_takes_the_fastest_kernel_that_imports_on_this_card(
    monkeypatch, tmp_path, fresh_choice, capability, flash_attn, chosen
):
    lines = {"sound": "", "built for another torch": "raise ImportError('undefined symbol')"}
    if flash_attn in lines:
        (tmp_path / "flash_attn.py").write_text(lines[flash_attn])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_kernel("auto", torch.device("cuda"), torch.bfloat16) == chosen
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    if chosen != "flash_attn":
        with pytest.raises(ConfigError, match=r"is not installed|undefined symbol|compute capability"):
            choose_kernel("flash_attn", torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("choice", ["flash_attn", "varlen"])
def test_a_kernel_that_cannot_run_is_named_with_the_remedy(choice):
    with pytest.raises(ConfigError, match=f"model.attention: {choice}: needs a CUDA device and bf16.*") as error:
        choose_kernel(choice, CPU, torch.bfloat16)
    assert error.value.faults[0].remedy == "set model.attention=auto"


def test_sliding_window_shorter_than_a_document_is_refused():
    row = torch.zeros(1, 1, 4, 8)
    documents = Documents(torch.tensor([0, 4], dtype=torch.int32), 4, "sdpa")
    with pytest.raises(ValueError, match="sliding-window"):
        packed_attention(torch.nn.Identity(), row, row, row, None, documents=documents, scaling=1.0, sliding_window=2)


def dense_varlen(query, key, value, cu_seqlens, scale):
    """[T, heads, dim] by a dense mask: what both flash kernels compute."""
    visible = torch.block_diag(*(torch.ones(n, n).tril() for n in cu_seqlens.diff().tolist())).bool()
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), value)


def stand_in_varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size):
    """torch 2.11's."""
    assert (max_q, max_k, window_size) == (5, 5, (-1, 0))
    assert query.shape == key.shape == value.shape
    assert cu_q is cu_k
    return dense_varlen(query, key, value, cu_q, scale)


def stand_in_grouped_varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """torch 2.12's."""
    assert (max_q, max_k, window_size) == (5, 5, (-1, 0))
    assert enable_gqa == (query.shape != key.shape)
    assert key.shape[1] == 2, "keys are not repeated"
    return dense_varlen(query, key, value, cu_q, scale)


def stand_in_flash_attn(query, key, value, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal):
    assert (max_q, max_k, causal) == (5, 5, True)
    assert cu_q is cu_k
    return dense_varlen(query, key, value, cu_q, softmax_scale)


@pytest.mark.parametrize(
    ("kernel", "varlen"),
    [("varlen", stand_in_varlen), ("varlen", stand_in_grouped_varlen), ("flash_attn", None)],
)
def test_gpu_kernels_are_called_with_what_they_take(monkeypatch, kernel, varlen):
    """Stand-ins with the kernels' own signatures (flash-attn 2's too) must give what sdpa gives."""
    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = stand_in_flash_attn
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    torch.manual_seed(0)
    query, *rest = (torch.randn(1, heads, 19, 8, dtype=torch.float64) for heads in (4, 2, 2))
    torch.testing.assert_close(*(attend(query, *rest, name) for name in (kernel, "sdpa")))


def attend(query, key, value, kernel):
    bounds = torch.tensor([0, 3, 8, 13, 14, 19], dtype=torch.int32, device=query.device)
    documents = Documents(bounds, 5, kernel)
    return packed_attention(torch.nn.Identity(), query, key, value, None, documents=documents, scaling=0.3)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["flash_attn", "varlen"])
def test_gpu_kernels_equal_sdpa_in_fp64_on_the_gpu(kernel):
    """Relative error of outputs and gradients: a few roundings to bf16, of 2^-9 each."""
    device = torch.device("cuda")
    if kernel == "flash_attn":
        pytest.importorskip("flash_attn")
    choose_kernel(kernel, device, torch.bfloat16)
    torch.manual_seed(0)
    shapes = [(1, heads, 19, 64) for heads in (4, 2, 2)]
    narrow = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    seen = []
    for inputs, name in ((narrow, kernel), (wide, "sdpa")):
        out = attend(*inputs, name)
        seen.append((out, *torch.autograd.grad(out.double().square().sum(), inputs)))
    for ours, theirs in zip(*seen, strict=True):
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()
