"""Step checkpoints: `STAGE/step-00000120/`, whole or absent, and `STAGE/latest`, which names the newest.

A checkpoint is written beside its place, flushed and renamed; only then is `latest` repointed, and old ones removed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llava_train.model.hf import flush, flush_tree
from llava_train.train.distributed import Ranks
from llava_train.train.engine import Engine
from llava_train.train.state import TrainState

TAG = "deepspeed"
PARTIAL = ".partial"


def write_whole(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees the old text or the new, never a part."""
    beside = path.with_name(path.name + PARTIAL)
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def save(stage_dir: Path, engine: Engine, state: TrainState, meta: dict[str, Any], keep: int, ranks: Ranks) -> Path:
    """Every rank calls it. `meta` is what a resume is compared against: settings, rank count, versions."""
    folder = stage_dir / f"step-{state.step:08d}"
    beside = folder.with_name(folder.name + PARTIAL)
    if ranks.is_first:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    ranks.barrier()
    engine.save(beside, TAG)
    torch.save(torch.get_rng_state(), beside / f"rng-{ranks.rank}.pt")
    if ranks.is_first:
        (beside / "state.json").write_text(json.dumps({"state": asdict(state), "meta": meta}, indent=1))
    ranks.barrier()
    if ranks.is_first:
        flush_tree(beside)
        if folder.exists():  # written before the run was stopped and its `latest` not repointed
            shutil.rmtree(folder)
        beside.rename(folder)
        flush(stage_dir)
        write_whole(stage_dir / "latest", folder.name)
        for old in sorted(stage_dir.glob("step-????????"))[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()
    return folder


def latest(stage_dir: Path) -> Path | None:
    """The newest whole checkpoint, if any."""
    pointer = stage_dir / "latest"
    if not pointer.exists():
        return None
    folder = stage_dir / pointer.read_text(encoding="utf-8").strip()
    return folder if (folder / "state.json").exists() else None


def read_meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))["meta"]


def load(folder: Path, engine: Engine, ranks: Ranks) -> TrainState:
    """Puts weights, optimiser and random state back; returns where the run was."""
    engine.load(folder, TAG)
    torch.set_rng_state(torch.load(folder / f"rng-{ranks.rank}.pt", weights_only=True))
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8"))["state"])
