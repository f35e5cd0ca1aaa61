"""Before the first stage: whether all ranks run the same, on the same files, with room to write and to train.

Every fault of every rank is told at once. What only shows while training is the guard's and the watchdog's.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import llava_train
from llava_train.config.fingerprint import PACKAGES, dump
from llava_train.config.mixture import stage_sources
from llava_train.config.schema import Config
from llava_train.costs.memory import num_trained, states
from llava_train.model.loading.load_model import resolve_init
from llava_train.model.start.read_model import model_dims
from llava_train.ranks.process_group import Ranks
from llava_train.records.file_formats import shards, split_of
from llava_train.shared.errors import RunError, shortened
from llava_train.train.engine.engine import MOMENT_NAMES
from llava_train.train.run.stages import Stage

READ = 65536  # bytes from each end of a data file that its fingerprint counts, beside its size
Needs = dict[str, tuple[float, float]]  # of each stage: bytes of states on a rank's GPU, and of one checkpoint


def check(config: Config, stages: list[Stage], ranks: Ranks) -> None:
    """Raises RunError, the same on every rank, with all that is wrong."""
    folder = Path(config.run.dir)
    token = _leave_token(folder) if ranks.is_first else None
    token = ranks.first(token)
    has_folder = ranks.is_first and isinstance(token, str)
    needs: Needs = ranks.first(_needs(config, stages, ranks.world_size) if has_folder else {})
    faults = [*_folder_faults(folder, token, needs), *memory_faults(needs, _free_memory(ranks.device))]
    gathered = ranks.gather((socket.gethostname(), facts(config), faults))
    if has_folder:
        (folder / str(token)).unlink(missing_ok=True)
    if found := [*rank_differences([(host, facts) for host, facts, _ in gathered]), *_told_by(gathered)]:
        head = "1 fault" if len(found) == 1 else f"{len(found)} faults"
        raise RunError("\n".join([f"{head} before the start:", *(f"  {i}. {f}" for i, f in enumerate(found, 1))]))


def facts(config: Config) -> dict[str, str]:
    """What must be alike on all ranks, each as a short text."""
    package = Path(llava_train.__file__).parent
    code = [(str(path.relative_to(package)), path.read_bytes()) for path in sorted(package.rglob("*.py"))]
    stages = config.stages.values()
    sources = {source.file for stage in stages for source in stage_sources(config.data, stage).values()}
    return {
        "code": _hash(code),
        "settings": _hash(dump(config)),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "data": _hash([_data_file(path) for name in sorted(sources) for path in _files(name)]),
    }


def _files(source: str) -> list[Path]:
    path, split = split_of(source)
    try:
        return shards(path, split)
    except (OSError, ValueError):
        return [path]  # it may be missing, where the settings allow that


def _data_file(path: Path) -> tuple[str, int, str]:
    if not path.is_file():
        return str(path), -1, ""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(READ)
        file.seek(max(0, size - READ))
        return str(path), size, _hash((head, file.read(READ)))


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def rank_differences(told: list[tuple[str, dict[str, str]]]) -> Iterator[str]:
    """A fault for each fact in which a rank differs from the others; `told` is host and facts by rank."""
    for key in told[0][1]:
        ranks_of: dict[str, list[str]] = {}
        for rank, (host, of_rank) in enumerate(told):
            ranks_of.setdefault(of_rank[key], []).append(f"{rank} on {host}")
        if len(ranks_of) > 1:
            few = sorted(ranks_of.items(), key=lambda item: len(item[1]))
            lines = [f"the ranks differ in their {key}:"]
            lines += [f"     rank {shortened(ranks, 4)}: {value}" for value, ranks in few]
            yield "\n".join([*lines, "     -> all nodes must see the same checkout, environment and data"])


def _leave_token(folder: Path) -> str | OSError:
    """Name of an empty file that other ranks should find in the run's folder."""
    name = f".preflight-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        return error
    return name


def _folder_faults(folder: Path, token: str | OSError, needs: Needs) -> Iterator[str]:
    own = folder / f".preflight-{secrets.token_hex(8)}"
    try:
        if isinstance(token, OSError):
            raise token
        if not (folder / token).exists():
            yield f"run.dir: {folder} is not the folder that rank 0 writes to\n     -> a disk that all nodes share"
            return
        own.touch()
        own.unlink()
    except OSError as error:
        yield f"run.dir: cannot be written: {error.strerror}\n     -> mend its rights or its quota, or name another"
        return
    free = shutil.disk_usage(folder).free
    for stage, (_, size) in needs.items():
        if free < size:
            told = f"a checkpoint of stage {stage} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            yield f"run.dir: {told}\n     -> free some, or name another folder: run.dir=DIR"


def _needs(config: Config, stages: list[Stage], world_size: int) -> Needs:
    dims = model_dims(resolve_init(config.model, Path(config.run.dir)))
    needs: Needs = {}
    for stage in stages:
        held = states(dims, stage.settings, stage.settings.zero, world_size)
        size = 4 * (1 + len(MOMENT_NAMES)) * num_trained(dims, stage.settings)
        needs[stage.name] = held.gpu - held.gathered, size
    return needs


def _free_memory(device: torch.device) -> int | None:
    """Bytes of this rank's GPU that nobody holds; None on a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def memory_faults(needs: Needs, free: int | None) -> Iterator[str]:
    """Where a stage's weights, gradients and optimiser alone, without a sample, exceed what is free."""
    for stage, (size, _) in needs.items():
        if free is not None and size > free:
            told = f"stage {stage} keeps {size / 1e9:.1f} GB on each GPU, and {free / 1e9:.1f} GB are free"
            remedy = f"more GPUs, a higher stages.{stage}.zero.level, offload: `python -m llava_train plan`"
            yield f"{told}\n     -> {remedy}"


def _told_by(gathered: list[tuple[str, dict[str, str], list[str]]]) -> Iterator[str]:
    """Each fault once, with the ranks that have it."""
    ranks_of: dict[str, list[str]] = {}
    for rank, (host, _, faults) in enumerate(gathered):
        for fault in faults:
            ranks_of.setdefault(fault, []).append(f"{rank} on {host}")
    for fault, ranks in ranks_of.items():
        yield f"rank {shortened(ranks, 4)}: {fault}"
