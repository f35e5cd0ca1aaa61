"""A pack that the GPU's memory cannot hold: says which one and what to set, or under `train.fit` lowers the budgets.

With steps of samples, packs are no part of the step's mathematics, so a smaller budget gives the same run. The new one
is written to `STAGE/fit.json`, and every rank starts its process anew from there: a rank that ran out of memory can
no longer take part in what the others wait for, at any ZeRO level, and a new process has all of its memory back. The
run continues from the last checkpoint; one rank alone saves the steps done before that.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from llava_train.batch.packed import PackedBatch
from llava_train.config.schema import StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.costs.flops import Recomputed
from llava_train.costs.memory import RESERVED, activations, states
from llava_train.ranks.launcher import ATTEMPT
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.shared.json_files import read_json
from llava_train.shared.whole_files import write_json

LOWERED_FILE = "fit.json"
POLL = 0.5  # seconds
SEEN = 10.0  # seconds after which a file of one node is seen by all
NAMED = 8  # samples of a pack


class PackTooLarge(RunError):
    """`batch` ran out of memory; nothing of its step counts."""

    def __init__(self, batch: PackedBatch):
        super().__init__("out of memory")
        self.batch = batch


def read_lowered(folder: Path) -> list[dict[str, Any]]:
    """What `train.fit` has lowered in a stage, first to last."""
    path = folder / LOWERED_FILE
    return read_json(path) if path.exists() else []


def with_lowered(settings: StageConfig, folder: Path) -> StageConfig:
    """The settings with the budgets that an earlier start of the stage came to, where these are smaller."""
    if not (lowered := read_lowered(folder)):
        return settings
    pack, last = settings.pack, lowered[-1]
    budgets = {name: min(getattr(pack, name), last[name]) for name in ("max_tokens", "max_tiles")}
    recomputes = bool(settings.gradient_checkpointing)  # auto would fill again what the smaller packs leave
    return replace(settings, pack=replace(pack, **budgets), gradient_checkpointing=recomputes)


class Fit:
    """Around the steps of a stage, as a context: where another rank lowers the budgets, this one starts anew too."""

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: StageConfig,
        dims: ModelDims,
        recomputed: Recomputed,
        ranks: Ranks,
        enabled: bool,
    ):
        self._folder, self._name, self._settings = folder, name, settings
        self._dims, self._recomputed = dims, recomputed
        self._ranks, self._enabled = ranks, enabled
        self._num_lowered = len(read_lowered(folder))
        self._left = threading.Event()

    def __enter__(self) -> Fit:
        if self._enabled and self._ranks.world_size > 1:
            threading.Thread(target=self._follow, daemon=True).start()
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _trace: Any) -> None:
        self._left.set()
        is_lost = isinstance(error, RuntimeError) and not isinstance(error, RunError)  # as is one that starts anew
        if self._enabled and self._ranks.world_size > 1 and is_lost:
            end = time.monotonic() + SEEN
            while time.monotonic() < end:
                if self._is_lowered():
                    _start_anew(self._ranks.environ)
                time.sleep(POLL)

    def _follow(self) -> None:
        while not self._left.wait(POLL):
            if self._is_lowered():
                _start_anew(self._ranks.environ)

    def _is_lowered(self) -> bool:
        return len(read_lowered(self._folder)) > self._num_lowered

    def lower(self, batch: PackedBatch, step: int, save: Callable[[], None]) -> NoReturn:
        """Starts anew with lower budgets. Raises RunError where it may not, or where the pack is one sample.

        step: how many were done. save: writes a checkpoint of these, for one rank alone.
        """
        problem = self._problem(batch, step)
        if not self._enabled or len(batch.sample_ids) < 2:
            raise RunError(f"{problem}\n    -> {self._remedy(batch)}")
        if self._ranks.world_size == 1 and step > 0:
            save()
        budgets = self._halved(batch)
        pack = {"samples": len(batch.sample_ids), "tokens": len(batch.input_ids), "tiles": len(batch.pixel_values)}
        entry = {"step": step + 1, "rank": self._ranks.rank, "pack": pack, **budgets}
        lowered = [*read_lowered(self._folder)[: self._num_lowered], entry]
        write_json(self._folder / LOWERED_FILE, lowered)
        told = ", ".join(f"pack.{name}={value}" for name, value in budgets.items())
        print(f"{problem}\n    -> train.fit: {told}, from the last checkpoint on", flush=True)
        _start_anew(self._ranks.environ)

    def _halved(self, batch: PackedBatch) -> dict[str, int]:
        """Of the budgets, or of what the pack holds of them where that is less."""
        pack, tokens, tiles = self._settings.pack, len(batch.input_ids), len(batch.pixel_values)
        max_tiles = max(1, min(pack.max_tiles, tiles) // 2) if tiles else pack.max_tiles
        return {"max_tokens": max(1, min(pack.max_tokens, tokens) // 2), "max_tiles": max_tiles}

    def _problem(self, batch: PackedBatch, step: int) -> str:
        tokens, tiles = len(batch.input_ids), len(batch.pixel_values)
        sizes = (np.array([n]) for n in (tokens, tiles, batch.num_supervised))
        pack = float(activations(self._dims, self._settings, self._recomputed, *sizes)[0])
        held = states(self._dims, self._settings, self._settings.zero, self._ranks.world_size).gpu + RESERVED
        names = ", ".join(batch.sample_ids[:NAMED]) + (", ..." if len(batch.sample_ids) > NAMED else "")
        has = f"; the GPU has {_gb(_memory(self._ranks.device))}" if self._ranks.device.type == "cuda" else ""
        return (
            f"out of memory on rank {self._ranks.rank} at step {step + 1} of stage {self._name}, in a pack of "
            f"{len(batch.sample_ids)} samples, {tokens:,} tokens, {tiles:,} tiles: {names}\n"
            f"  estimated, as `plan` does: {_gb(pack)} for the pack and {_gb(held)} for all else{has}"
        )

    def _remedy(self, batch: PackedBatch) -> str:
        key, settings = f"stages.{self._name}", self._settings
        recomputes_all = settings.gradient_checkpointing is True
        checkpointing = "" if recomputes_all else f"{key}.gradient_checkpointing=true, "
        if len(batch.sample_ids) < 2:
            return f"no pack is smaller than a sample: set {checkpointing}a higher ZeRO level or {key}.max_length"
        lower = " ".join(f"{key}.pack.{name}={value}" for name, value in self._halved(batch).items())
        by_itself = "" if settings.pack.unit == "tokens" else "; train.fit=true does so by itself"
        return f"set {checkpointing}or {lower}{by_itself}"


def _memory(device: torch.device) -> float:
    return torch.cuda.get_device_properties(device).total_memory


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _start_anew(environ: dict[str, str]) -> NoReturn:
    """This process from its beginning, by the same command, under the same number."""
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    attempt = int(environ.get(ATTEMPT, 0)) + 1
    os.execve(sys.executable, sys.orig_argv, environ | {ATTEMPT: str(attempt)})
