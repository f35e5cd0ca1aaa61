"""A run's settings on disk: written out whole, and as the fingerprint that decides whether a checkpoint may go on."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

import yaml

from llava_train.config.mixture import load_mixture
from llava_train.config.schema import Config

# What changes speed, memory or files, never the step's mathematics. zero.level is not among them: it shapes the state.
_STAGE_FREE = (
    "mixture",
    "pack",
    "gradient_checkpointing",
    "checkpoint",
    "zero.offload_optimizer",
    "zero.offload_parameters",
)


def dump(config: Any) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def fingerprint(config: Config, stage_name: str) -> dict[str, Any]:
    """Flat key to value of all that changes a stage's numbers or the order of its data; JSON can hold it.

    A mixture counts by what it holds, not by where its file lies. Raises ConfigError if it cannot be read.
    """
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
    for name in ("file", "on_error", "allow_missing_sources", "max_pixels"):
        marks[f"data.{name}"] = getattr(data, name)
    if not data.file:
        sources = load_mixture(stage.mixture)
        wanted = {name: {k: getattr(s, k) for k in ("file", "sampling", "repeat")} for name, s in sources.items()}
        marks |= _flat(wanted, "sources")
    settings = _flat(stage, f"stages.{stage_name}")
    free = tuple(f"stages.{stage_name}.{name}" for name in _STAGE_FREE)
    return marks | {key: value for key, value in settings.items() if not key.startswith(free)}


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each setting in which two fingerprints differ; empty if they agree."""
    lines = []
    for key in [*saved, *(key for key in now if key not in saved)]:
        if key not in saved or key not in now or saved[key] != now[key]:
            lines.append(f"{key}: {saved.get(key, 'not set')} in the checkpoint, {now.get(key, 'not set')} now")
    return lines


def _flat(value: Any, key: str) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {k: v for name, entry in value.items() for k, v in _flat(entry, f"{key}.{name}").items()}
    return {key: value}
