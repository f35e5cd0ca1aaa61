"""Stage to stage by name: which are left to do, where each starts, and whether its folder may be continued."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llava_train.config.errors import RunError
from llava_train.config.fingerprint import differences, fingerprint
from llava_train.config.schema import Config, ModelConfig, StageConfig
from llava_train.train import checkpoint
from llava_train.train.distributed import Ranks
from llava_train.train.metrics import console

FINISHED = "finished.json"
EXPORT = "hf"


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
        stages.append(Stage(name, f"{number}/{len(config.stages)} {name}", settings, folder, start))
        start = replace(config.model, init=str(folder / EXPORT))
    return stages


def pending_stages(config: Config, ranks: Ranks) -> list[Stage]:
    """The stages that are not finished. Raises RunError where a folder holds a run with other settings."""
    stages = all_stages(config)
    for stage in stages:
        _refuse_other_settings(stage, resume_meta(config, stage, ranks.world_size))
    pending = [stage for stage in stages if not stage.is_finished]
    if len(pending) < len(stages):
        done = len(stages) - len(pending)
        told = f"{done} of {len(stages)} stages were finished before" + ("" if pending else ": all is done")
        console(ranks.is_first).print(told, highlight=False)
    return pending


def resume_meta(config: Config, stage: Stage, world_size: int) -> dict[str, Any]:
    """What a checkpoint keeps to be compared before a resume, and the versions that wrote it."""
    packages = ("llava_train", "torch", "transformers", "deepspeed")
    return {
        "fingerprint": fingerprint(config, stage.name),
        "world_size": world_size,
        "versions": {package: version(package) for package in packages},
    }


def _refuse_other_settings(stage: Stage, meta: dict[str, Any]) -> None:
    newest = checkpoint.latest(stage.folder)
    if stage.is_finished:
        saved = json.loads((stage.folder / FINISHED).read_text(encoding="utf-8"))["meta"]
    elif newest:
        saved = checkpoint.read_meta(newest)
    else:
        return
    lines = differences(saved["fingerprint"], meta["fingerprint"])
    if not stage.is_finished and saved["world_size"] != meta["world_size"]:
        lines.append(f"number of ranks: {saved['world_size']} in the checkpoint, {meta['world_size']} now")
    refuse(stage, lines)


def refuse(stage: Stage, lines: list[str]) -> None:
    """Raises RunError with `lines`, the differences between a stage's checkpoint and this run, if there are any."""
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise RunError(
            f"{stage.folder} holds a run with other settings:\n{listed}\n"
            "    -> set them back to continue it, or give the new run a folder of its own: run.dir=DIR"
        )


def finish(stage: Stage, meta: dict[str, Any], summary: dict[str, Any]) -> None:
    checkpoint.write_whole(stage.folder / FINISHED, json.dumps({"meta": meta, "summary": summary}, indent=1))
