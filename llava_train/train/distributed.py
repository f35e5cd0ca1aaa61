"""Ranks: start them, and agree on numbers and objects. One process without a launcher is a world of size 1."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.distributed_c10d import AllgatherOptions

from llava_train.config.errors import LostRankError, RunError

# Of one collective of NCCL or gloo, which ranks enter together: who comes late to a step is named before (`Guard`).
TIMEOUT = timedelta(minutes=10)
# The others wait while rank 0 indexes, exports or writes a report. A lost rank still shows at once, as a closed socket.
LONG_TIMEOUT = timedelta(days=7)
ATTEMPT = "LLAVA_TRAIN_ATTEMPT"  # how often the ranks were started anew by themselves
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


def slurm_environment(environ: dict[str, str]) -> dict[str, str]:
    if "SLURM_PROCID" not in environ or "MASTER_ADDR" not in environ:
        return {}
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
    }


@contextmanager
def start_ranks() -> Iterator[Ranks]:
    """The process group that torchrun or srun describes in the environment, or one of this process alone.

    Raises LostRankError where another rank is gone, and RunError where a GPU's memory does not do.
    """
    _quieten_libraries()
    environ = dict(os.environ)
    alone = "RANK" not in environ and not slurm_environment(environ)
    if alone:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")  # DeepSpeed reads them
    elif "RANK" not in environ:
        os.environ.update(slurm_environment(environ))
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        if not dist.is_initialized():
            _init_process_group("nccl" if cuda else "gloo", alone)
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, *_cpu_group(), environ)
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


def _cpu_group() -> tuple[dist.ProcessGroup | None, dist.Store | None]:
    if dist.get_world_size() == 1:
        return None, None
    group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    return group, dist.PrefixStore("llava_train", dist.distributed_c10d._get_default_store())


def _quieten_libraries() -> None:
    """Drops what a user can do nothing about, and bars that are drawn where nobody looks."""
    # DeepSpeed calls torch by names that torch renames.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def _init_process_group(backend: str, alone: bool) -> None:
    """Once per process, until its end: DeepSpeed keeps the group that it saw first."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    # Its shared-memory all-reduce is built with a C++ compiler at first use; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if alone:  # no port, so nothing that another run on this machine could have taken
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    else:  # the launcher's store may hold what the processes before wrote, where they were started anew
        store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(f"attempt {os.environ.get(ATTEMPT, 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)
    atexit.register(dist.destroy_process_group)
