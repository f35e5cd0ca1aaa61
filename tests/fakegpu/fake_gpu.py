"""A GPU that computes nothing: what runs on it shows where its tensors lie and when its host waits for it.

The host is real and the device is fake: a tensor on the device has a shape, a dtype and no values (FakeTensorMode);
what lies on the CPU computes as always. Within `FakeGpu.micro_batch` every operation is looked at, of the forward, of
what runs again and of the backward. It changes torch for good, so it belongs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "fakegpu"
REGISTER = "_setup_privateuseone_for_python_backend"
WHOLE = ("silu_backward", "_fused_rms_norm", "_fused_rms_norm_backward")  # one kernel on a GPU
COPIES = ("aten::_to_copy", "aten::copy_")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index", "aten::_unsafe_index_put")
PRINTS = (torch.Tensor.__repr__, torch.Tensor.__format__)
MAKES = (torch.tensor, torch.as_tensor)  # from numbers on the host
WAITS = ((torch.accelerator, "synchronize"), (torch.cuda, "synchronize"))


class HostWaits(RuntimeError):
    """The host would wait for the device."""


class NotOnDevice(RuntimeError):
    """A tensor lies on the host where the device computes."""


def missing() -> str:
    """Why this torch cannot make the device; empty where it can."""
    return "" if hasattr(backend_registration, REGISTER) else f"torch {torch.__version__} has no {REGISTER}"


class FakeGpu:
    """The device. `mode` makes tensors without values, on the host too: a model's, before they are placed."""

    def __init__(self) -> None:
        getattr(backend_registration, REGISTER)(NAME, _module())
        self.device = torch.device(NAME, 0)
        self.mode = FakeTensorMode()
        self.found: list[Exception] = []
        self._kernels = torch.library.Library("aten", "IMPL")
        self._kernels.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
        for name in WHOLE:
            self._kernels.impl(name, _unused, "PrivateUse1")

    def place_parameters(self, module: nn.Module) -> None:
        """Each to the device, as DeepSpeed moves them at every level; what is shared stays shared.

        Buffers stay on the host, and lose their values as well.
        """
        moved: dict[nn.Parameter, nn.Parameter] = {}
        with self.mode:
            for owner in module.modules():
                for name, old in owner._parameters.items():
                    if old is not None and old not in moved:
                        new = torch.empty(old.shape, dtype=old.dtype, device=self.device)
                        moved[old] = nn.Parameter(new, requires_grad=old.requires_grad)
                    owner._parameters[name] = old if old is None else moved[old]
                for name, buffer in owner._buffers.items():
                    owner._buffers[name] = buffer if buffer is None else self.fake(buffer)

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its shape and dtype, where it lies."""
        return tensor if isinstance(tensor, FakeTensor) else self.mode.from_tensor(tensor)

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Within it a wait of the host raises HostWaits, and a tensor that is not on the device NotOnDevice.

        In a backward they are raised when it is done: autograd ends the process where one of its hooks raises.
        """
        kept = [getattr(module, name) for module, name in WAITS]
        self.found.clear()
        for module, name in WAITS:
            setattr(module, name, self._refuse_wait)
        try:
            with _Functions(), _Operations(self), torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            for (module, name), function in zip(WAITS, kept, strict=True):
                setattr(module, name, function)
        if self.found:
            raise self.found[0]

    def report(self, error: Exception) -> None:
        if torch._C._current_graph_task_id() == -1:
            raise error
        self.found.append(error)

    def _refuse_wait(self, *_args: Any, **_kwargs: Any) -> None:
        self.report(HostWaits("synchronize"))


def _unused(*_args: Any) -> None:
    """That the kernel is there lets torch leave the operation whole, as on a GPU; the mode answers in its place."""
    raise AssertionError


def _module() -> Any:
    class Module(backend_registration._DummyBackendModule):
        """`torch.fakegpu`, with what autocast, checkpointing and seeding ask of a device beside."""

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

        def get_rng_state(self, _device: Any) -> torch.Tensor:
            return torch.empty(0)

        def set_rng_state(self, _state: torch.Tensor, _device: Any) -> None:
            pass

    return Module()


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """As on a GPU, where one kernel keeps no scores; for a device that torch does not know it forms them."""
    assert not args, "no training forward has a mask"
    assert kwargs.get("attn_mask") is None
    causal, scale = kwargs.get("is_causal", False), kwargs.get("scale")
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[0]


class _Operations(TorchDispatchMode):
    """Every operation, below autograd."""

    def __init__(self, gpu: FakeGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # every other call
            return func(*args)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        to_device = torch.device(kwargs.get("device") or "cpu").type == NAME
        if not (to_device or any(_on_device(tensor) or isinstance(tensor, FakeTensor) for tensor in tensors)):
            return func(*args, **kwargs)
        operation = func._schema.name
        if operation in COPIES:
            self._look_at_copy(operation, args, kwargs)
        elif left := [tensor for tensor in tensors if not _on_device(tensor)]:
            shapes = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in left)
            self.gpu.report(NotOnDevice(f"{func}: {shapes} on the host"))
            args, kwargs = tree_map_only(torch.Tensor, self._moved, (args, kwargs))
        if operation in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.gpu.report(HostWaits(f"{func}: what a boolean index holds is counted"))
        with self.gpu.mode:
            try:
                return func(*tree_map_only(torch.Tensor, self.gpu.fake, args), **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException):
                self.gpu.report(HostWaits(f"{func} is read"))
                if operation == "aten::_local_scalar_dense":  # within a backward, which goes on
                    return 0.0 if args[0].is_floating_point() else 0
                raise

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        with self.gpu.mode:
            return tensor if _on_device(tensor) else self.gpu.fake(tensor).to(self.gpu.device)

    def _look_at_copy(self, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Between host and device one kind is right: of a batch, to the device, without waiting."""
        if operation == "aten::copy_":
            to, source, *flags = args
            place = to.device
        else:
            [source], flags = args, []
            place = torch.device(kwargs.get("device") or source.device)
        if source.device.type == place.type == NAME:
            return
        if place.type != NAME:
            self.gpu.report(HostWaits(f"{operation} from {source.device} to {place}"))
        elif not (kwargs.get("non_blocking") or any(flags)):
            self.gpu.report(HostWaits(f"{operation} from {source.device} to {place} is not non_blocking"))
        elif isinstance(source, FakeTensor):
            self.gpu.report(NotOnDevice(f"{operation}: the model's own {list(source.shape)} on the host"))


def _on_device(tensor: torch.Tensor) -> bool:
    return tensor.device.type == NAME


class _Functions(TorchFunctionMode):
    """What no operation shows."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRINTS and _on_device(args[0]):
            raise HostWaits("a tensor on the device is printed")
        if func in MAKES and torch.device(kwargs.get("device") or "cpu").type == NAME:
            raise HostWaits(f"{func.__name__} copies numbers to the device")
        return func(*args, **kwargs)
