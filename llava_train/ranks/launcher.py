"""Which process of how many this one is: the variables of the launcher, read here alone. Imports no library.

torchrun, accelerate, deepspeed and Kubeflow set RANK and the like; mpirun and srun have names of their own. A process
that no launcher started is a world of size 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from llava_train.shared.errors import Fault, RunError

ATTEMPT = "LLAVA_TRAIN_ATTEMPT"  # how often the ranks were started anew by themselves
START_WAIT = "LLAVA_TRAIN_START_WAIT"  # seconds that the ranks wait for each other at the start
DEFAULT_START_WAIT = 180
LAST_PORT = 65535
_LOCAL_RANK_WORD = re.compile(r"--local[-_]rank=(?P<number>.*)")


@dataclass(frozen=True)
class Launcher:
    """Names of the variables that hold a process's place. The launcher is known by the first of them."""

    rank: str
    world_size: str
    local_rank: str
    alone: str  # what to do where one process was meant


TORCHRUN = Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "to train alone: unset RANK WORLD_SIZE LOCAL_RANK")
SLURM = Launcher("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "in an interactive shell: unset SLURM_PROCID")
_NO_MPI = "to train alone: start it without mpirun"
LAUNCHERS = (  # mpirun before srun, which may have started it
    TORCHRUN,
    Launcher("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", _NO_MPI),
    Launcher("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", _NO_MPI),
    SLURM,
    Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", _NO_MPI),
)
_ALONE = {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # values that a process without a launcher may have
_MEETING = "export MASTER_ADDR=HOST MASTER_PORT=PORT, the node of rank 0 and a free port on it, alike for all ranks"


@dataclass(frozen=True)
class Launch:
    """The place of this process. `host` is "" where it trains alone and meets nobody."""

    rank: int
    world_size: int
    local_rank: int | None  # None: the launcher does not say
    launcher: Launcher
    host: str = ""  # where the ranks meet
    port: int = 0
    has_store: bool = False  # the launcher keeps the store there, as torchrun does; else rank 0 does
    attempt: str = "0.0"  # alike for all ranks that start together, another one at their next start
    start_wait: int = DEFAULT_START_WAIT  # seconds


def read_launch(environ: Mapping[str, str]) -> Launch:
    """Raises RunError with all that is wrong in the variables, each with its remedy."""
    values = {name: text.strip() for name, text in environ.items() if text.strip()}
    faults: list[Fault] = []
    launch = _describe(values, faults)
    if faults:
        head = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"  {i}. {fault}" for i, fault in enumerate(faults, 1)]
        raise RunError("\n".join([f"{head} in the variables of the launcher:", *lines]))
    return launch


def _describe(values: dict[str, str], faults: list[Fault]) -> Launch:
    launcher = next((known for known in LAUNCHERS if known.rank in values), TORCHRUN)
    strays = [name for name, value in _ALONE.items() if values.get(name, value) != value]
    if (launcher.rank not in values and not strays) or (launcher is SLURM and _is_shell(values)):
        return Launch(0, 1, 0, launcher)
    remedy = f"a launcher sets {launcher.rank}, {launcher.world_size} and {launcher.local_rank}; {launcher.alone}"
    rank = _number(launcher.rank, values, 0, remedy, faults)
    world_size = _number(launcher.world_size, values, 1, remedy, faults)
    local_rank = 0 if world_size == 1 else None
    if launcher.local_rank in values:
        local_rank = _number(launcher.local_rank, values, 0, remedy, faults)
    if not faults and rank >= world_size:
        told = f"is {rank}, where {launcher.world_size}={world_size} leaves 0 to {world_size - 1}"
        faults.append(Fault(launcher.rank, told, remedy))
    host, port = _meeting_point(values, world_size, f"{_MEETING}; {launcher.alone}", faults)
    start_wait = DEFAULT_START_WAIT
    if START_WAIT in values:
        start_wait = _number(START_WAIT, values, 1, "whole seconds", faults)
    attempt = f"{values.get('TORCHELASTIC_RESTART_COUNT', 0)}.{values.get(ATTEMPT, 0)}"
    has_store = launcher is TORCHRUN and values.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, world_size, local_rank, launcher, host, port, has_store, attempt, start_wait)


def _is_shell(values: dict[str, str]) -> bool:
    """Whether this is the shell of an allocation, in which no task of srun runs: sbatch and salloc set SLURM_PROCID=0.

    `srun --pty bash` sets all that a task has, and SLURM_PTY_PORT; with a meeting point it is taken for one.
    """
    if values[SLURM.rank] != "0":
        return False
    is_step = "SLURM_STEP_ID" in values and "SLURM_PTY_PORT" not in values
    return not is_step and (SLURM.world_size not in values or "MASTER_ADDR" not in values)


def _meeting_point(values: dict[str, str], world_size: int, remedy: str, faults: list[Fault]) -> tuple[str, int]:
    if world_size == 1 and not {"MASTER_ADDR", "MASTER_PORT"} & set(values):
        return "", 0
    if "MASTER_ADDR" not in values:
        faults.append(Fault("MASTER_ADDR", "is not set", remedy))
    port = _number("MASTER_PORT", values, 1, remedy, faults)
    if port > LAST_PORT:
        faults.append(Fault("MASTER_PORT", f"is {port}, and the last port is {LAST_PORT}", remedy))
    return (values.get("MASTER_ADDR", ""), port) if world_size > 1 else ("", 0)


def _number(name: str, values: dict[str, str], least: int, remedy: str, faults: list[Fault]) -> int:
    text = values.get(name, "")
    if text.isdecimal() and int(text) >= least:
        return int(text)
    told = f"is {text}, and must be a whole number from {least} on" if text else "is not set"
    faults.append(Fault(name, told, remedy))
    return least


def device_index(launch: Launch, num_devices: int) -> int:
    """Which of the visible GPUs is this process's: the only one, or that of its number on the node.

    Raises RunError where the number is not known or no GPU has it.
    """
    name = launch.launcher.local_rank
    if num_devices == 1:
        return 0
    if launch.local_rank is None:
        told = f"{name}: is not set, and {num_devices} GPUs are visible"
        raise RunError(f"{told}\n    -> {name}=0 where one process runs on a node, else 0, 1, 2 and so on in each node")
    if launch.local_rank >= num_devices:
        told = f"{name}: is {launch.local_rank}, and GPUs 0 to {num_devices - 1} are visible"
        remedy = f"start {num_devices} processes on a node, or let each see all its GPUs (CUDA_VISIBLE_DEVICES)"
        raise RunError(f"{told}\n    -> {remedy}")
    return launch.local_rank


def take_local_rank(words: list[str], environ: MutableMapping[str, str]) -> list[str]:
    """The words without `--local_rank=N`, which `deepspeed` and `torch.distributed.launch` add; sets LOCAL_RANK to it.

    Raises RunError where LOCAL_RANK is another number.
    """
    kept: list[str] = []
    for word in words:
        if (found := _LOCAL_RANK_WORD.fullmatch(word)) is None:
            kept.append(word)
        elif environ.setdefault("LOCAL_RANK", found["number"]) != found["number"]:
            remedy = "leave the word out: the launcher's variables say which process this is"
            raise RunError(f"{word}: LOCAL_RANK is {environ['LOCAL_RANK']}\n    -> {remedy}")
    return kept
