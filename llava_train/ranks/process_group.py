"""Ranks: start them, and agree on numbers and objects. One process without a launcher is a world of size 1."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.distributed_c10d import AllgatherOptions

from llava_train.ranks.deepspeed_fields import internal
from llava_train.ranks.launcher import Launch, device_index, read_launch
from llava_train.ranks.rendezvous import meet
from llava_train.shared.errors import LostRankError, RunError

# Of one collective of NCCL or gloo, which ranks enter together: who comes late to a step is named before (`Guard`).
TIMEOUT = timedelta(minutes=10)
# The others wait while rank 0 indexes, exports or writes a report. A lost rank still shows at once, as a closed socket.
LONG_TIMEOUT = timedelta(days=7)
GRACE = 0.1  # seconds between the last message and the end of the process
# Names of CUDA's allocator settings, the one that torch 2.11 to 2.13 asks for first; it reads the others as well.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# What gloo, NCCL and the store say on the ranks that are left when one is gone.
_LOST_RANK = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection was likely closed",
    "ncclRemoteError",
)


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # on the CPU, for all that is no arithmetic; None where a rank is alone
    store: dist.Store | None = None  # what ranks leave there is found by others, whatever they wait for; None likewise
    environ: dict[str, str] = field(default_factory=dict)  # that this process was started with

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.group)

    def sum(self, *values: float | torch.Tensor) -> list[float]:
        """Each value, or scalar tensor, summed over all ranks, in float64 so that token counts stay exact."""
        tensor = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def exchange(self, values: Sequence[float], limit: float) -> list[list[float]]:
        """The numbers of every rank, as many on each, in rank order: one message over the CPU, in float64.

        Raises RuntimeError, with "Timed out" in it, where a rank does not come within `limit` seconds.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self.group is None:
            return [mine.tolist()]
        theirs = [torch.empty_like(mine) for _ in range(self.world_size)]
        options = AllgatherOptions()
        options.timeout = timedelta(seconds=limit)
        self.group.allgather([theirs], [mine], options).wait()
        return [tensor.tolist() for tensor in theirs]

    def tell(self, number: int) -> None:
        """Leaves a number where `told` finds it on every rank."""
        if self.store is not None:
            self.store.set(f"rank {self.rank}", str(number))

    def told(self) -> list[int]:
        """What each rank left last, in rank order; 0 where it left nothing. Waits for none of them."""
        keys = [f"rank {rank}" for rank in range(self.world_size)]
        return [int(self.store.get(key)) if self.store and self.store.check([key]) else 0 for key in keys]

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Rank 0 runs the body while the others wait, then they run it."""
        if not self.is_first:
            self.barrier()
        yield
        if self.is_first:
            self.barrier()

    def first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]


@contextmanager
def start_ranks() -> Iterator[Ranks]:
    """The process group that torchrun or srun describes in the environment, or one of this process alone.

    Raises LostRankError where another rank is gone, and RunError where a GPU's memory does not do.
    """
    _quieten_libraries()
    environ = dict(os.environ)
    launch = read_launch(environ)
    try:
        device = _choose_device(launch)
        if not dist.is_initialized():
            _init_process_group("nccl" if device.type == "cuda" else "gloo", launch)
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), device, *_cpu_group(launch), environ)
        _refuse_shared_gpus(ranks)
        yield ranks
    except torch.OutOfMemoryError as error:
        remedy = "less in stages.STAGE.pack, gradient_checkpointing, a higher zero.level, more GPUs"
        told = str(error).splitlines()[0]
        raise RunError(f"{told}\n    -> {remedy}: `python -m llava_train plan` compares them") from error
    except RuntimeError as error:
        if isinstance(error, RunError) or not any(told in str(error) for told in _LOST_RANK):
            raise
        raise LostRankError(
            f"another rank of this run is gone: {str(error).splitlines()[0]}\n"
            "    -> its own last words say why; the same command continues from the last whole checkpoint"
        ) from error
    finally:
        os.environ.clear()
        os.environ.update(environ)


def _choose_device(launch: Launch) -> torch.device:
    """Sets what DeepSpeed and CUDA read from the environment, before they do."""
    cuda = torch.cuda.is_available()
    index = device_index(launch, torch.cuda.device_count()) if cuda else launch.local_rank or 0
    os.environ.update({launch.launcher.local_rank: str(index), "LOCAL_RANK": str(index)})
    os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.world_size))
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return torch.device("cpu")
    os.environ.update(allocator_defaults(os.environ))
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def allocator_defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """Segments that grow, since packs differ in size; what the user has set wins. Read at the first use of CUDA."""
    return {} if any(name in environ for name in _ALLOCATOR) else {_ALLOCATOR[0]: "expandable_segments:True"}


def _refuse_shared_gpus(ranks: Ranks) -> None:
    """Raises RunError, the same on every rank, where two have one GPU, which NCCL refuses without their names."""
    if ranks.device.type == "cuda" and ranks.world_size > 1:
        gpu = str(torch.cuda.get_device_properties(ranks.device).uuid)
        if told := shared_gpus(ranks.gather((socket.gethostname(), gpu))):
            raise RunError(told)


def shared_gpus(gpus: Sequence[tuple[str, str]]) -> str:
    """What to tell where ranks share a GPU; "" where none do. gpus: host and identity of each rank's."""
    ranks_of: dict[str, list[str]] = {}
    for rank, (host, gpu) in enumerate(gpus):
        ranks_of.setdefault(gpu, []).append(f"{rank} on {host}")
    lines = [f"one GPU is that of rank {', '.join(ranks)}" for ranks in ranks_of.values() if len(ranks) > 1]
    remedy = "as many processes on a node as it has GPUs, and LOCAL_RANK or CUDA_VISIBLE_DEVICES of its own for each"
    return "\n".join([*lines, f"    -> {remedy}"]) if lines else ""


def _cpu_group(launch: Launch) -> tuple[dist.ProcessGroup | None, dist.Store | None]:
    if dist.get_world_size() == 1:
        return None, None
    with _connecting():
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=launch.start_wait))
    dist.distributed_c10d._set_pg_timeout(LONG_TIMEOUT, group)  # its making would wait as long
    return group, dist.PrefixStore("llava_train", dist.distributed_c10d._get_default_store())


@contextmanager
def _connecting() -> Iterator[None]:
    """Raises LostRankError where ranks that have met cannot connect, RunError where this one has no such network."""
    try:
        yield
    except RuntimeError as error:
        told = f"the ranks have met, but cannot connect to each other: {str(error).splitlines()[0]}"
        remedy = "name the network between the nodes: export GLOO_SOCKET_IFNAME=NAME NCCL_SOCKET_IFNAME=NAME"
        kind = RunError if "Unable to find address" in told else LostRankError
        raise kind(f"{told}\n    -> {remedy}; where a rank is gone, its own last words say why") from error


def _quieten_libraries() -> None:
    """Drops what a user can do nothing about, and bars that are drawn where nobody looks."""
    # DeepSpeed calls torch by names that torch renames.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def _init_process_group(backend: str, launch: Launch) -> None:
    """Once per process, until its end: DeepSpeed keeps the group that it saw first."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    # Its shared-memory all-reduce is built with a C++ compiler at first use; gloo does without.
    internal(deepspeed.ops, "__compatible_ops__")["deepspeed_shm_comm"] = False
    # alone: no port, so nothing that another run on this machine could have taken
    store = meet(launch, TIMEOUT) if launch.host else dist.HashStore()
    timeout = timedelta(seconds=launch.start_wait)
    with _connecting():
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout)
    dist.distributed_c10d._set_pg_timeout(TIMEOUT)
    deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)
    atexit.register(_leave)


def _leave() -> None:
    """Before the interpreter ends, for which the threads of gloo need it: to let go of the last tensors. One that comes
    too late would abort a process that has done all its work (pytorch/pytorch, issue 190489)."""
    dist.destroy_process_group()
    time.sleep(GRACE)
