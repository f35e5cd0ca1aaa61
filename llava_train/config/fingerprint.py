"""A run's settings on disk: written out whole, and as the fingerprint that decides whether a checkpoint may go on."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from typing import Any

import yaml

from llava_train.config.mixture import load_mixture
from llava_train.config.schema import Config

# What changes speed, memory or files, never the step's mathematics beyond rounding.
_STAGE_FREE = ("pack", "gradient_checkpointing", "checkpoint", "zero")
_HELD_OUT = ("evaluation.file", "evaluation.held_out")  # fixed where set, else left out
DATA_FIXED = (
    "file",
    "on_error",
    "allow_missing_sources",
    "allow_outside_root",
    "max_pixels",
    "max_frames",
    "max_media",
    "too_long",
)
PACKAGES = ("llava_train", "torch", "transformers", "deepspeed")


def dump(config: Any) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def fingerprint(config: Config, stage_name: str, num_ranks: int) -> dict[str, dict[str, Any]]:
    """What a checkpoint is compared by, flat keys to values that JSON can hold.

    `fixed` is all that changes a stage's numbers or the order of its data, `free` what may change between a checkpoint
    and its resume and is told. A mixture counts by what it holds, not by where its file lies. Raises ConfigError if it
    cannot be read.
    """
    settings = _flat(config.stages[stage_name], f"stages.{stage_name}")
    tokens = config.stages[stage_name].pack.unit == "tokens"  # then packs decide which samples a step has
    keys = tuple(f"stages.{stage_name}.{name}" for name in _STAGE_FREE if not (tokens and name == "pack"))
    free = {key: value for key, value in settings.items() if key.startswith(keys)}
    free |= {"number of ranks": num_ranks, "model.attention": config.model.attention}
    free |= {"data.num_workers": config.data.num_workers}
    evaluation = _flat(config.evaluation, "evaluation")
    held_out = {key: value for key in _HELD_OUT if (value := evaluation.pop(key))}
    free |= _flat(config.log, "log") | evaluation
    free |= {f"version of {package}": version(package) for package in PACKAGES}
    fixed = {key: value for key, value in settings.items() if key not in free and not key.endswith(".mixture")}
    return {"fixed": _start_and_data(config, stage_name) | fixed | held_out, "free": free}


def _start_and_data(config: Config, stage_name: str) -> dict[str, Any]:
    stage, names = config.stages[stage_name], list(config.stages)
    before = names[names.index(stage_name) - 1] if stage_name != names[0] else ""
    model, data = config.model, config.data
    marks: dict[str, Any] = {"stage": stage_name, "run.seed": config.run.seed}
    if before:
        marks["start"] = f"stage {before}"
    elif model.init:
        marks["model.init"] = model.init
    else:
        marks |= {"model.language_model": model.language_model, "model.vision_tower": model.vision_tower}
    for name in DATA_FIXED:
        marks[f"data.{name}"] = getattr(data, name)
    if stage.mixture and not data.file:
        sources = load_mixture(stage.mixture)
        wanted = {name: {k: getattr(s, k) for k in ("file", "sampling", "repeat")} for name, s in sources.items()}
        marks |= _flat(wanted, "sources")
    return marks


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line `key: in the checkpoint -> now` for each entry in which two mappings differ; empty if they agree."""
    lines = []
    for key in [*saved, *(key for key in now if key not in saved)]:
        if key not in saved or key not in now or saved[key] != now[key]:
            lines.append(f"{key}: {saved.get(key, 'not set')} -> {now.get(key, 'not set')}")
    return lines


def _flat(value: Any, key: str) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {k: v for name, entry in value.items() for k, v in _flat(entry, f"{key}.{name}").items()}
    return {key: value}
