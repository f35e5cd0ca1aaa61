"""Stage to stage by name: which are left to do, where each starts, and whether its folder may be continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_train.config.errors import RunError
from llava_train.config.fingerprint import differences, fingerprint
from llava_train.config.schema import Config, ModelConfig, StageConfig
from llava_train.config.strict_json import to_json
from llava_train.train import checkpoint
from llava_train.train.distributed import Ranks
from llava_train.train.fit import with_lowered
from llava_train.train.folders import FINISHED
from llava_train.train.metrics import console

EXPORT, ADAPTER = "hf", "adapter"
_ROUNDING = (
    "  with another number of ranks, ZeRO level or packing the losses agree to about 1e-5 relative, not bit for bit"
)


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its settings, its folder and the weights that it starts from."""

    name: str
    label: str  # "2/4 mid", for people
    settings: StageConfig
    folder: Path
    start: ModelConfig

    @property
    def export(self) -> Path:
        return self.folder / EXPORT

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def is_finished(self) -> bool:
        return (self.folder / FINISHED).exists()

    def summary(self) -> dict[str, Any]:
        """What `finish` wrote: steps, samples, tokens, seconds, last loss, what was left out."""
        return json.loads((self.folder / FINISHED).read_text(encoding="utf-8"))["summary"]


def all_stages(config: Config) -> list[Stage]:
    """The run's stages in order, each starting from the export of the one before."""
    stages: list[Stage] = []
    start = config.model
    for number, (name, settings) in enumerate(config.stages.items(), 1):
        folder = Path(config.run.dir) / name
        settings = with_lowered(settings, folder) if config.train.fit else settings
        stages.append(Stage(name, f"{number}/{len(config.stages)} {name}", settings, folder, start))
        start = replace(config.model, init=str(folder / EXPORT))
    return stages


def pending_stages(config: Config, ranks: Ranks) -> list[Stage]:
    """The stages that are not finished. Raises RunError where a folder holds a run with other settings."""
    stages = all_stages(config)
    for stage in stages:
        _compare_settings(stage, resume_meta(config, stage, ranks.world_size), ranks)
    pending = [stage for stage in stages if not stage.is_finished]
    if len(pending) < len(stages):
        done = len(stages) - len(pending)
        told = f"{done} of {len(stages)} stages were finished before" + ("" if pending else ": all is done")
        console(ranks.is_first).print(told, highlight=False)
    return pending


def resume_meta(config: Config, stage: Stage, world_size: int) -> dict[str, Any]:
    """What a checkpoint keeps to be compared before a resume."""
    return {"fingerprint": fingerprint(config, stage.name, world_size)}


def _compare_settings(stage: Stage, meta: dict[str, Any], ranks: Ranks) -> None:
    """Says which settings changed since the checkpoint. Raises RunError where one did that must not."""
    newest = checkpoint.newest_meta(stage.folder)
    if stage.is_finished:
        saved = json.loads((stage.folder / FINISHED).read_text(encoding="utf-8"))["meta"]
    elif newest:
        saved = newest
    else:
        return
    fixed, free = (differences(saved["fingerprint"][kind], meta["fingerprint"][kind]) for kind in ("fixed", "free"))
    refuse(stage, fixed, free)
    if free and not stage.is_finished:
        told = [f"stage {stage.label}, changed since the checkpoint: {line}" for line in free] + [_ROUNDING]
        console(ranks.is_first).print("\n".join(told), highlight=False)


def refuse(stage: Stage, fixed: list[str], free: Sequence[str] = ()) -> None:
    """Raises RunError if there are differences between a stage's checkpoint and this run that may not be: `fixed`."""
    if fixed:
        listed = [f"{stage.folder} holds a run with other settings (in the checkpoint -> now)", "  not allowed:"]
        listed += [f"    {line}" for line in fixed]
        if free:
            listed += ["  allowed:", *(f"    {line}" for line in free)]
        way_out = "    -> set back what is not allowed, or give the new run a folder of its own: run.dir=DIR"
        raise RunError("\n".join([*listed, way_out]))


def finish(stage: Stage, meta: dict[str, Any], summary: dict[str, Any]) -> None:
    checkpoint.write_whole(stage.folder / FINISHED, to_json({"meta": meta, "summary": summary}, indent=1))
