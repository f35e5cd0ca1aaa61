"""Step checkpoints on disk: `STAGE/base/` and `STAGE/step-00000120/`, each whole or absent, and how they are read.

`base/` holds what does not change while a stage trains: all of a Hugging Face folder but its weights, and the frozen
weights. A step folder holds fp32 master weights and AdamW's moments of what trains, a file of each kind per rank that
wrote it, and `state.json`: where the run was, its settings, and size and hash of every other file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_train.config.schema import CheckpointConfig
from llava_train.model.files.tensor_files import SlicedFiles, Written, file_sha256
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.shared.json_files import finite, read_json, to_json
from llava_train.shared.whole_files import PARTIAL, flush, write_whole
from llava_train.train.checkpoint.run_folder import step_of, whole_checkpoints
from llava_train.train.checkpoint.state import TrainState
from llava_train.train.engine.engine import Engine

BASE = "base"
MANIFEST = {"base": "manifest.json", "step": "state.json"}
LATEST, BEST = "latest", "best"
DAMAGED = ".damaged"


def step_folder(stage_dir: Path, step: int) -> Path:
    return stage_dir / f"step-{step:08d}"


def manifest_of(folder: Path) -> Path:
    return folder / MANIFEST["base" if folder.name == BASE else "step"]


def read_state(folder: Path) -> dict[str, Any]:
    """`state`: where the run was; `meta`: its settings; `files`: what belongs to it; `optimizer_step`: AdamW's."""
    return read_json(folder / MANIFEST["step"])


def newest_meta(stage_dir: Path) -> dict[str, Any] | None:
    """Settings of the newest checkpoint whose `state.json` is as it was written; its other files are not looked at."""
    readable = (folder for folder in whole_checkpoints(stage_dir) if _readable(folder))
    newest = next(readable, None)
    return read_state(newest)["meta"] if newest else None


def step_weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("weights-*.safetensors"))


def optimizer_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("optimizer-*.safetensors"))


def frozen_files(base: Path) -> list[Path]:
    return sorted(base.glob("frozen-*.safetensors"))


def damage(folder: Path, share: tuple[int, int] = (0, 1)) -> str:
    """What is wrong with a step or base folder: "" or the first file that is not as it was written.

    share: (i, n) looks at every n-th file from the i-th only, so that ranks can divide the reading.
    """
    if not _readable(folder):
        return f"{manifest_of(folder).name} is missing, or not as it was written"
    content = read_json(manifest_of(folder))
    files = [(folder / name, name, written) for name, written in sorted(content["files"].items())]
    if start := content.get("start"):
        elsewhere = _start_folder(folder, start)
        files += [(elsewhere / name, str(elsewhere / name), w) for name, w in sorted(start["files"].items())]
    for path, name, entry in files[share[0] :: share[1]]:
        written = Written(**entry)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != written.bytes:
            return f"{name} has {path.stat().st_size:,} bytes instead of {written.bytes:,}"
        if file_sha256(path) != written.sha256:
            return f"{name} is not as it was written"
    return ""


def start_of(base: Path) -> tuple[Path, dict[str, dict[str, Any]]] | None:
    """The folder whose weights the stage's frozen ones are, and size and hash of its files; None where `base` holds
    them itself."""
    start = read_json(manifest_of(base)).get("start")
    return (_start_folder(base, start), start["files"]) if start else None


def start_name(stage_dir: Path, start: Path) -> str:
    """How `base/` of a stage names the folder of its start: within the run relative to it, so that it may move."""
    run = stage_dir.parent.resolve()
    return str(start.relative_to(run) if start.is_relative_to(run) else start)


def _start_folder(base: Path, start: dict[str, Any]) -> Path:
    return (base.parents[1] / start["folder"]).resolve()


def _readable(folder: Path) -> bool:
    try:
        content = read_json(manifest_of(folder))
        return bool(content.pop("sha256") == _own_hash(content))
    except (OSError, ValueError, AttributeError, KeyError):
        return False


def manifest_text(content: dict[str, Any], files: dict[str, Written]) -> str:
    """JSON with `files` and a hash of its own."""
    content = finite(content | {"files": {name: asdict(written) for name, written in sorted(files.items())}})
    return to_json(content | {"sha256": _own_hash(content)}, indent=1)


def _own_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def last_whole(stage_dir: Path, ranks: Ranks) -> tuple[Path | None, list[str]]:
    """The newest checkpoint without damage, and a line about each one that was passed over for it and set aside.

    Every rank calls it; they divide the reading. Raises RunError where checkpoints are there and none is whole.
    """
    folders: list[Path] = ranks.first(whole_checkpoints(stage_dir))
    if not folders:
        return None, []
    if found := _damage_of(stage_dir / BASE, ranks):
        remedy = "put it back, or begin the stage anew: remove the stage's folder"
        problem = f"{stage_dir / BASE}: {found}; no checkpoint of this stage can be read without it"
        raise RunError(f"{problem}\n    -> {remedy}")
    told: list[str] = []
    for folder in folders:
        found = _damage_of(folder, ranks)
        if not found:
            return folder, told
        told.append(f"{folder}: {found}; set aside as {folder.name}{DAMAGED}")
        if ranks.is_first:
            aside = folder.with_name(folder.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    lines = "\n".join(f"  {line}" for line in told)
    raise RunError(
        f"no checkpoint of {stage_dir} is whole:\n{lines}\n    -> begin the stage anew: remove the stage's folder"
    )


def _damage_of(folder: Path, ranks: Ranks) -> str:
    return next(filter(None, ranks.gather(damage(folder, (ranks.rank, ranks.world_size)))), "")


def load_checkpoint(folder: Path, engine: Engine) -> TrainState:
    """Puts weights and optimiser back; returns where the run was. Any number of ranks, any ZeRO level."""
    content = read_state(folder)
    engine.load(
        SlicedFiles(step_weight_files(folder)),
        SlicedFiles(optimizer_files(folder)),
        content["optimizer_step"],
        None if start_of(folder.parent / BASE) else SlicedFiles(frozen_files(folder.parent / BASE)),
    )
    return TrainState(**content["state"])


def retire(stage_dir: Path, policy: CheckpointConfig) -> None:
    """Repoints `latest` and `best`; removes the checkpoints that the policy does not keep."""
    folders = whole_checkpoints(stage_dir)
    write_whole(stage_dir / LATEST, folders[0].name)
    kept = set(folders[: policy.keep])
    if policy.keep_every:
        kept |= {folder for folder in folders if step_of(folder) % policy.keep_every == 0}
    if policy.best != "none":
        best = best_of(folders, policy.best)
        if best:
            write_whole(stage_dir / BEST, best.name)
            kept.add(best)
    for folder in set(folders) - kept:
        remove(folder)


def best_of(folders: list[Path], metric: str) -> Path | None:
    """The one with the lowest value, the oldest of equals; None where the metric was measured at none."""
    values = {folder: read_state(folder)["metrics"].get(metric) for folder in sorted(folders)}
    return min((f for f, value in values.items() if value is not None), key=lambda f: values[f], default=None)


def remove(folder: Path) -> None:
    """Renamed first, so that a removal that is cut off leaves no folder that looks whole."""
    beside = folder.with_name(f"{folder.name}.old{PARTIAL}")  # not the name under which its successor is being written
    shutil.rmtree(beside, ignore_errors=True)
    folder.rename(beside)
    flush(folder.parent)
    shutil.rmtree(beside)


def remove_partial(stage_dir: Path) -> None:
    """What an earlier run was writing or removing when it ended."""
    for path in stage_dir.glob(f"*{PARTIAL}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
