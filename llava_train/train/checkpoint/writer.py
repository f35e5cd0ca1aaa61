"""Writes checkpoints: every rank its own slices, on disk or from a copy behind the training, then rank 0 the rest.

A checkpoint takes its name only when all ranks' files are flushed and listed with their hashes in `state.json`.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_train.config.schema import CheckpointConfig
from llava_train.model.files.tensor_files import Spec, Written, file_sha256, write_tensors
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.shared.whole_files import flush, flush_tree
from llava_train.start_folder.find import weight_files
from llava_train.train.checkpoint import on_disk
from llava_train.train.checkpoint.state import TrainState
from llava_train.train.engine.engine import MOMENT_NAMES, Engine
from llava_train.train.engine.zero_slices import Slice

Tensors = dict[str, tuple[Slice, torch.Tensor]]  # key in the file -> the slice, and its values


@dataclass
class _Pending:
    folder: Path
    content: dict[str, Any]  # of state.json
    thread: threading.Thread | None
    files: dict[str, Written] = field(default_factory=dict)  # of this rank
    error: str = "the writing was cut off"


class Saver:
    """The checkpoints of one stage. Every rank has one, and calls it at the same steps."""

    def __init__(self, stage_dir: Path, engine: Engine, policy: CheckpointConfig, ranks: Ranks):
        self.stage_dir, self.engine, self.policy, self.ranks = stage_dir, engine, policy, ranks
        self._pending: _Pending | None = None

    def write_base(self, write_support: Callable[[Path], None], start: Path | None) -> None:
        """`base/`, at the start of a stage; one left by a start that saved nothing more is replaced.

        `write_support` writes the files of a Hugging Face folder that are no weights. Frozen weights are written too,
        unless they are those of the folder `start`: then it is named, with the hashes of its files.
        """
        folder = self.stage_dir / on_disk.BASE
        beside = self._start(folder)
        content: dict[str, Any] = {}
        files, error = dict[str, Written](), ""
        if start:
            content["start"] = {"folder": on_disk.start_name(self.stage_dir, start), "files": self.hashes(start)}
        else:
            files, error = self._try(lambda: self._write(beside, "frozen", _values(self.engine.frozen_slices())))
        if self.ranks.is_first and not error:
            support, error = self._try(lambda: _support(beside, write_support))
            files = files | support
        self._commit(_Pending(folder, content, None, files, error))

    def hashes(self, start: Path) -> dict[str, dict[str, Any]]:
        """Size and hash of the weight files of a start; the ranks divide the reading."""
        paths = weight_files(start)[self.ranks.rank :: self.ranks.world_size]
        mine = {path.name: asdict(Written(path.stat().st_size, file_sha256(path))) for path in paths}
        return {name: written for of_rank in self.ranks.gather(mine) for name, written in of_rank.items()}

    def save(self, state: TrainState, meta: dict[str, Any], metrics: dict[str, float], background: bool) -> None:
        """Writes the checkpoint of `state.step`. With `background` it returns when the values are copied: see `poll`.

        Raises RunError on every rank where one of them cannot write; the checkpoints before are then untouched.
        """
        self.finish()
        folder = on_disk.step_folder(self.stage_dir, state.step)
        beside = self._start(folder)
        weights, optimizer, step = self._trained()
        content = {"state": asdict(state), "meta": meta, "metrics": metrics, "optimizer_step": step}
        pending = self._pending = _Pending(folder, content, None)

        def write() -> None:
            pending.files, pending.error = self._try(
                lambda: self._write(beside, "weights", weights) | self._write(beside, "optimizer", optimizer)
            )

        if background:
            weights, optimizer = _copied(weights), _copied(optimizer)
            pending.thread = threading.Thread(target=write, name=f"save {folder.name}")
            pending.thread.start()
        else:
            write()
            self.finish()

    def poll(self) -> None:
        """Between steps: names the checkpoint in the making if all ranks have written theirs."""
        pending = self._pending
        if pending is not None:
            assert pending.thread
            still = self.ranks.sum(float(pending.thread.is_alive()))[0]
            if not still:
                self.finish()

    def finish(self) -> None:
        """Waits for the checkpoint in the making, if there is one."""
        pending, self._pending = self._pending, None
        if pending is not None:
            if pending.thread:
                pending.thread.join()
            self._commit(pending)
            error = ""
            if self.ranks.is_first:
                _, error = self._try(lambda: on_disk.retire(self.stage_dir, self.policy))
            self._raise(pending.folder, error)

    def _start(self, folder: Path) -> Path:
        """An empty folder beside the place of `folder`, on every rank's disk."""
        beside = folder.with_name(folder.name + on_disk.PARTIAL)
        error = ""
        if self.ranks.is_first:
            _, error = self._try(lambda: _new_folder(beside))
        self._raise(folder, error)
        return beside

    def refuse_little_space(self, has_base: bool) -> None:
        """Raises RunError where the disk has no room for one checkpoint, and if `has_base` for the frozen weights."""
        trained = sum(4 * (1 + len(MOMENT_NAMES)) * part.numel for part in self.engine.trained_slices() if part.written)
        frozen = sum(p.numel * p.flat.element_size() for p in self.engine.frozen_slices() if p.written and has_base)
        needed = self.ranks.sum(trained + frozen)[0]
        free = self.ranks.first(shutil.disk_usage(self.stage_dir).free)
        if free < needed:
            raise RunError(
                f"{self.stage_dir}: one checkpoint takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free\n"
                "    -> free some, or name another folder: run.dir=DIR"
            )

    def _commit(self, pending: _Pending) -> None:
        """Names the folder if all ranks have written theirs, else removes it and raises RunError on all."""
        folder = pending.folder
        beside = folder.with_name(folder.name + on_disk.PARTIAL)
        gathered = self.ranks.gather((pending.files, pending.error))
        error = next((error for _, error in gathered if error), "")
        if self.ranks.is_first:
            if not error:
                files = {name: written for of_rank, _ in gathered for name, written in of_rank.items()}
                _, error = self._try(lambda: _name(beside, folder, pending.content, files))
            if error:
                shutil.rmtree(beside, ignore_errors=True)
        self._raise(folder, error)

    def _raise(self, folder: Path, error: str) -> None:
        if found := next(filter(None, self.ranks.gather(error)), ""):
            whole = self.ranks.first(on_disk.whole_checkpoints(self.stage_dir))
            last = f"{whole[0].name} is the last whole checkpoint" if whole else "there is no checkpoint before it"
            remedy = "see to space and permissions there, then give the same command again"
            raise RunError(f"{folder} cannot be written: {found}; {last}\n    -> {remedy}")

    def _try(self, write: Callable[[], dict[str, Written] | None]) -> tuple[dict[str, Written], str]:
        """What was written, or what the disk said: an error must reach all ranks, so it is carried, not raised."""
        try:
            return write() or {}, ""
        except OSError as error:
            return {}, f"rank {self.ranks.rank}: {error}"

    def _write(self, folder: Path, kind: str, tensors: Tensors) -> dict[str, Written]:
        name = f"{kind}-{self.ranks.rank:05d}-of-{self.ranks.world_size:05d}.safetensors"
        slices = {key: {"start": part.start, "shape": part.shape} for key, (part, _) in tensors.items()}
        specs = {key: Spec(values.dtype, tuple(values.shape)) for key, (_, values) in tensors.items()}
        values = ((key, values) for key, (_, values) in tensors.items())
        return {name: write_tensors(folder / name, specs, values, {"slices": json.dumps(slices)})}

    def _trained(self) -> tuple[Tensors, Tensors, int]:
        parts = [part for part in self.engine.trained_slices() if part.written]
        states = [self.engine.optimizer_state(part) for part in parts]
        moments = {
            f"{kind}/{part.name}": (part, part.of(state[kind]))
            for part, state in zip(parts, states, strict=True)
            for kind in MOMENT_NAMES
        }
        steps = {int(state["step"]) for state in states}
        [step] = set().union(*self.ranks.gather(steps))  # AdamW counts for each tensor; ours are updated together
        return _values(parts), moments, step


def _values(parts: list[Slice]) -> Tensors:
    return {part.name: (part, part.of(part.flat)) for part in parts if part.written}


def _copied(tensors: Tensors) -> Tensors:
    return {key: (part, values.to("cpu", copy=True)) for key, (part, values) in tensors.items()}


def _new_folder(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def _support(folder: Path, write_support: Callable[[Path], None]) -> dict[str, Written]:
    before = set(_files(folder))
    write_support(folder)
    new = (path for path in _files(folder) if path not in before)
    return {str(path.relative_to(folder)): Written(path.stat().st_size, file_sha256(path)) for path in new}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _name(beside: Path, folder: Path, content: dict[str, Any], files: dict[str, Written]) -> None:
    """The manifest, then the name. Raises OSError where a file of another rank is not to be seen from here."""
    for name, written in files.items():
        path = beside / name
        if not path.is_file() or path.stat().st_size != written.bytes:
            raise OSError(f"{name} is not there; is the run's folder shared by all nodes?")
    manifest = beside / on_disk.manifest_of(folder).name
    manifest.write_text(on_disk.manifest_text(content, files), encoding="utf-8")
    flush_tree(beside)
    if folder.exists():
        on_disk.remove(folder)
    beside.rename(folder)
    flush(folder.parent)
