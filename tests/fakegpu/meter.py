"""What a micro-batch on the fake GPU costs: bytes that are held, and FLOPs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from fake_gpu import NAME
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

FLOPS = {**flop_registry, torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm]}


class Meter(TorchDispatchMode):
    """held, peak: bytes of all storages on the device but those of `module`, each once, now and at the most.

    flops: of matrix products, convolutions and attention, where of a document of `lengths` each token sees what is
    before it. Attention's backward counts 2.5 forwards, as torch counts it for its own kernels.
    """

    def __init__(self, module: nn.Module, lengths: list[int]):
        super().__init__()
        self.held = self.peak = self.flops = 0
        self.pairs = sum(length**2 for length in lengths) / 2
        self._storages = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.prim.device.default:  # every other call
            return result
        if func.namespace == "torch_attn":
            backward = "backward" in func._schema.name
            query = args[1 if backward else 0]
            self.flops += int(4 * self.pairs * query.shape[1] * query.shape[2] * (2.5 if backward else 1))
        elif count := FLOPS.get(func._overloadpacket):
            self.flops += count(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == NAME:
                self._hold(leaf.untyped_storage())
        self.peak = max(self.peak, self.held)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.held += size
            weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.held -= size
