"""Attention over a packed row: each token sees its own document, up to itself.

Enters: queries, keys and values of one row of T tokens, and its `Documents`. Leaves: the attention output of the row.
transformers calls `packed_attention` under the name `PACKED` once `register()` ran; `documents=` reaches it through the
keyword arguments of the language model's forward. The boundaries come from `cu_seqlens` and nowhere else.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby, pairwise
from typing import Any, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from llava_train.model.forward.cpu_attention import blocked_attention
from llava_train.model.forward.cpu_bf16 import lacks_bf16
from llava_train.shared.errors import ConfigError

PACKED = "llava_train_packed"
TILES = "llava_train_tiles"
LONGEST_BLOCKED = 768  # tokens of a document on a CPU, from which torch's own attention is as fast and keeps less
AttentionChoice = Literal["auto", "flash_attn", "varlen", "sdpa"]
Kernel = Literal["flash_attn", "varlen", "sdpa"]
FLASH_CAPABILITY = (8, 0)  # of the GPU, from which the flash kernels run: Ampere


@dataclass(frozen=True)
class Documents:
    """Boundaries of the D documents of one row, and the kernel that keeps to them.

    cu_seqlens  int32 [D + 1], on the model's device
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    kernel: Kernel

    @cached_property
    def lengths(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self.cu_seqlens.tolist())]


@lru_cache
def choose_kernel(choice: AttentionChoice, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel to run; `auto`: flash-attn, torch's varlen or sdpa. ConfigError where `choice` cannot run.

    Looked for once in a process: flash-attn by importing it, since a build for another torch is found and fails.
    """
    problem = _kernel_problem(choice, device, dtype)
    if problem:
        raise ConfigError.one("model.attention", f"{choice}: {problem}", "set model.attention=auto")
    if choice != "auto":
        return choice
    kernels: tuple[Kernel, ...] = ("flash_attn", "varlen", "sdpa")
    return next(kernel for kernel in kernels if not _kernel_problem(kernel, device, dtype))


def _kernel_problem(choice: AttentionChoice, device: torch.device, dtype: torch.dtype) -> str:
    if choice in ("auto", "sdpa"):
        return ""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return f"needs a CUDA device and bf16, not {device.type} and {str(dtype).removeprefix('torch.')}"
    if (capability := torch.cuda.get_device_capability(device)) < FLASH_CAPABILITY:
        return f"needs a GPU of compute capability {_dotted(FLASH_CAPABILITY)}, and this one has {_dotted(capability)}"
    module = "flash_attn" if choice == "flash_attn" else "torch.nn.attention.varlen"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (ImportError, OSError) as error:  # built for another torch or CUDA
        return f"{module} cannot be imported: {error}"
    return ""


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def register() -> None:
    """Makes `PACKED` and `TILES` known to transformers. No mask is built for a name without a mask function.

    Of torch's own kernels cuDNN's is left aside: Hopper cards prefer it, and it plans anew for each number of tiles.
    """
    from transformers import AttentionInterface

    torch.backends.cuda.enable_cudnn_sdp(False)

    AttentionInterface.register(PACKED, packed_attention)
    AttentionInterface.register(TILES, tile_attention)


def packed_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, T, head_dim]
    key: torch.Tensor,  # [1, kv_heads, T, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: Documents,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Returns ([1, T, heads, head_dim], None). With varlen it lies within a compiled layer's one graph."""
    assert attention_mask is None
    assert len(query) == 1
    assert dropout == 0.0
    if sliding_window is not None and sliding_window < documents.max_seqlen:
        raise ValueError(f"sliding-window attention ({sliding_window} tokens) is not supported in packed rows")
    run = {"flash_attn": _flash_attn, "varlen": _varlen, "sdpa": _sdpa}[documents.kernel]
    return run(query, key, value, documents, scaling), None


@torch.compiler.disable
def _flash_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, scale: float
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    bounds, longest = documents.cu_seqlens, documents.max_seqlen
    out = flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, softmax_scale=scale, causal=True)
    return out[None]


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, scale: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    grouped: dict[str, Any] = {"enable_gqa": True} if groups > 1 and _takes_groups(varlen_attn) else {}
    if groups > 1 and not grouped:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    bounds, longest = documents.cu_seqlens, documents.max_seqlen
    out = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), **grouped)
    assert isinstance(out, torch.Tensor)
    return out[None]


@torch.compiler.assume_constant_result
def _takes_groups(kernel: Any) -> bool:
    """Whether fewer keys than queries may be given; not before torch 2.12."""
    return "enable_gqa" in inspect.signature(kernel).parameters


@torch.compiler.disable
def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, scale: float
) -> torch.Tensor:
    """Document by document, neighbours of equal length in one call. `split`: a slice's backward would fill the row."""
    dtype = query.dtype
    if lacks_bf16(query):
        query, key, value = query.float(), key.float(), value.float()
    runs = [(length, len(list(same))) for length, same in groupby(documents.lengths)]
    sizes = [length * count for length, count in runs]
    outputs = []
    for (length, count), *parts in zip(runs, *(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True):
        q, k, v = (part.unflatten(1, (count, length)).transpose(0, 1) for part in parts)  # [count, heads, length, dim]
        blocked = q.device.type == "cpu" and length <= LONGEST_BLOCKED
        out = (_blocked if blocked else _whole)(q, k, v, scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None].to(dtype)


def _whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


def _blocked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """The heads of all documents side by side; a key's queries share its products, so that no key is repeated."""
    groups = query.shape[1] // key.shape[1]
    rows = query.unflatten(1, (-1, groups)).flatten(0, 1)
    return blocked_attention(rows, key.flatten(0, 1), value.flatten(0, 1), scale).reshape(query.shape)


def tile_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,  # [N, heads, patches, head_dim]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Of the tower: each patch sees its tile. Returns ([N, patches, heads, head_dim], None)."""
    assert attention_mask is None
    assert dropout == 0.0
    run = _tiles_on_cpu if query.device.type == "cpu" else scaled_dot_product_attention
    return run(query, key, value, scale=scaling).transpose(1, 2), None


@torch.compiler.disable
def _tiles_on_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    dtype = query.dtype
    if lacks_bf16(query):
        query, key, value = query.float(), key.float(), value.float()
    if query.shape[2] > LONGEST_BLOCKED:
        return scaled_dot_product_attention(query, key, value, scale=scale).to(dtype)
    return ((query * scale @ key.transpose(2, 3)).softmax(-1) @ value).to(dtype)
