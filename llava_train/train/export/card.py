"""The card of a stage, from its records: settings, where the run was, and what the start says of itself."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load, try_to_load_from_cache
from transformers import AutoConfig
from yaml import YAMLError

from llava_train.config.mixture import stage_sources
from llava_train.config.rules.adapter import how_trained
from llava_train.config.schema import Config, ModelConfig, StageConfig
from llava_train.evaluate.prediction import EVALUATION_FILE as EVALUATION
from llava_train.evaluate.prediction import Prediction, TaskResult
from llava_train.family.registry import family_of
from llava_train.model.hf_folder.card import (
    Card,
    DataSource,
    Origin,
    card_record,
    could_be_hub_name,
    last_names,
    render_card,
)
from llava_train.model.hf_folder.preparation import PREPARATION_FILE, read_preparation
from llava_train.model.prepare.trained_parts import PARTS
from llava_train.shared.errors import ConfigError
from llava_train.shared.json_files import read_json
from llava_train.shared.whole_files import write_json, write_whole
from llava_train.start_folder.find import TINY
from llava_train.train.run.stages import FINISHED, Stage

PACKAGES = ("llava_train", "torch", "transformers", "deepspeed")


def make_card(config: Config, stage: Stage, state: dict[str, Any], meta: dict[str, Any]) -> Card:
    """The card of `stage` at the step that `state` tells, a TrainState as a dict.

    meta: `data`, samples by source, and where they are there `num_refused` and `held_out`, those not trained on, by
    source; `fingerprint`, whose free part holds versions and ranks; `start`, which `start_record` gave when the stage
    began: without it the start is looked at now.
    """
    start = meta.get("start") or start_record(config, stage)
    free = meta.get("fingerprint", {}).get("free", {})
    settings = stage.settings
    card = Card(
        recipe=config.run.name,
        stage=stage.name,
        init=start["init"],
        origins=start["origins"],
        history=start["history"],
        data=meta["data"],
        sources={name: source for name, source in start["sources"].items() if name in meta["data"]},
        rates={part: how_trained(settings, part) for part in PARTS},
        settings=_settings(config, settings, state["step"], free.get("number of ranks")),
        figures=_figures(state, meta.get("num_refused"), sum(meta.get("held_out", {}).values())),
        versions={p: free.get(f"version of {p}") or version(p) for p in PACKAGES}
        | {"python": platform.python_version()},
    )
    exported = exported_state(stage.summary()) if stage.is_finished else {}
    if exported.get("step") == state["step"]:  # else the answers are of other weights
        card["evaluation"] = _evaluation(stage.folder / EVALUATION)
    return card


def refresh_card(config: Config, stage: Stage) -> None:
    """Writes the card of a finished stage's export again, now that the stage was evaluated."""
    finished = read_json(stage.folder / FINISHED)
    card = make_card(config, stage, exported_state(finished["summary"]), finished["meta"])
    notes = stage.export / PREPARATION_FILE
    content = read_json(notes) | card_record(card)
    write_json(notes, content)
    trained = AutoConfig.from_pretrained(stage.export, trust_remote_code=False)
    is_intermediate = not read_preparation(str(stage.export), trained).geometry.is_in_transformers
    write_whole(stage.export / "README.md", render_card(card, family_of(trained), is_intermediate))


def exported_state(summary: dict[str, Any]) -> dict[str, Any]:
    """Where the run was at the checkpoint that `hf/` was made of: its last, unless the summary says otherwise."""
    return summary.get("exported", summary)


def start_record(config: Config, stage: Stage) -> dict[str, Any]:
    """What a card must know of a stage's start and data, for JSON; later both may be gone. No path is in it."""
    model = stage.start
    names = [model.init] if model.init else [model.language_model, model.vision_tower]
    return {
        "init": " and ".join(map(_shown, names)),
        "origins": _origins(model, config.run.seed),
        "history": _notes(model.init).get("history", []) if model.init else [],
        "sources": _sources(config, stage.settings),
    }


def _origins(model: ModelConfig, seed: int) -> dict[str, Origin]:
    """By part. A hub name is its own origin, a folder passes on what it says of itself."""
    if model.init == TINY:
        return dict.fromkeys(PARTS, Origin(name="random weights"))
    if model.init:
        inherited = {} if _is_on_hub(model.init) else _notes(model.init).get("origins", {})
        return inherited or dict.fromkeys(PARTS, _origin(model.init))
    return {
        "vision_tower": _origin(model.vision_tower),
        "projector": Origin(name=f"new, seed {seed}"),
        "language_model": _origin(model.language_model),
    }


def _origin(name: str) -> Origin:
    readme = _find(name, "README.md")
    metadata: dict[str, Any] = {}
    if readme:
        try:
            metadata = metadata_load(readme) or {}
        except (YAMLError, ValueError):  # somebody else's file: a card that cannot be read says nothing
            metadata = {}
    bases = metadata.get("base_model")
    named: list[str] = [
        base for base in map(str, bases if isinstance(bases, list) else [bases]) if could_be_hub_name(base)
    ]
    keys = ("license", "license_name", "license_link")
    licence = {key: metadata[key] for key in keys if isinstance(metadata.get(key), str)}
    link = licence.get("license_link", "")
    if link and "://" not in link:  # a file beside that card
        licence["license_link"] = f"https://huggingface.co/{name}/blob/main/{link}"
        if not _is_on_hub(name):
            del licence["license_link"]
    return Origin(name=_shown(name), base_models=[name] if _is_on_hub(name) else named, licence=licence)


def _notes(init: str) -> dict[str, Any]:
    path = _find(init, PREPARATION_FILE)
    return read_json(path) if path else {}


def _find(name: str, file: str) -> Path | None:
    """A file of a folder, or of a hub checkpoint as far as it was downloaded."""
    found = Path(name, file)
    if _is_on_hub(name):
        cached = try_to_load_from_cache(name, file)
        found = Path(cached) if isinstance(cached, str) else found
    return found if found.is_file() else None


def _is_on_hub(name: str) -> bool:
    return could_be_hub_name(name) and not Path(name).exists()


def _shown(name: str) -> str:
    return name if _is_on_hub(name) else last_names(name)


def _sources(config: Config, settings: StageConfig) -> dict[str, DataSource]:
    try:
        sources = stage_sources(config.data, settings)
    except ConfigError:  # the mixture's file is gone since the stage was trained: names and counts remain
        return {}
    return {
        name: DataSource(
            sampling=source.sampling + (f", {source.repeat} times" if source.repeat > 1 else ""),
            repository=source.repository,
            licence=source.licence,
        )
        for name, source in sources.items()
    }


def _settings(config: Config, stage: StageConfig, step: int, num_ranks: int | None) -> dict[str, str]:
    optimizer, image, zero, schedule = stage.optimizer, stage.image, stage.zero, stage.schedule
    offloaded = [name for name in ("optimizer", "parameters") if getattr(zero, f"offload_{name}")]
    tiles = {
        "anyres": f", at most {image.max_tiles} tiles, {len(image.grid)} canvases",
        "checkpoint": ": grid and tiles of the checkpoint that it started from",
        "square": "",
    }[image.mode]
    rates = {f"learning rate, {p.replace('_', ' ')}": f"{getattr(stage.learning_rate, p)}" for p in PARTS}
    return rates | {
        "global batch": stage.step_size,
        "optimiser steps": f"{step:,}",
        "epochs asked for": f"{stage.epochs:g}" if stage.epochs else "by steps alone",
        "schedule": f"{schedule.kind}, warm-up {schedule.warmup_ratio}",
        "optimiser": f"AdamW, betas {optimizer.beta1} and {optimizer.beta2}, epsilon {optimizer.epsilon}",
        "weight decay": f"{optimizer.weight_decay}",
        "largest gradient norm": f"{optimizer.max_grad_norm}",
        "precision": stage.precision,
        "ZeRO": f"{zero.level}" + (f", {' and '.join(offloaded)} on CPU" if offloaded else ""),
        "ranks": "not recorded" if num_ranks is None else f"{num_ranks}",
        "longest sample": f"{stage.max_length:,} tokens",
        "images": image.mode + tiles,
        "video": f"{stage.video.fps} frames per second, at most {stage.video.max_frames}",
        "template": f"{stage.template}, tags {stage.tag_policy}",
        "labels": stage.label_rule,
        "seed": f"{config.run.seed}",
    }


def _figures(state: dict[str, Any], num_refused: int | None, num_held_out: int) -> dict[str, float]:
    figures: dict[str, float] = {
        "training loss of the last step": float(state["loss"]),
        "samples": state["num_samples"],
        "tokens": state["num_tokens"],
        "supervised tokens": state["num_supervised"],
        "samples lost in decoding": len(state["skipped"]),
    }
    if num_held_out:
        figures["samples held out of training"] = num_held_out
    for step, loss in state.get("held_out", []):
        if step in (0, state["step"]):
            figures["held-out loss" + (" before training" if step == 0 else "")] = loss
    if num_refused is not None:
        figures["samples refused before training"] = num_refused
    if state["seconds"] > 0:
        figures["seconds"] = float(state["seconds"])
        figures["tokens per second"] = state["num_tokens"] / state["seconds"]
    return figures


def _evaluation(path: Path) -> dict[str, dict[str, float]]:
    if not path.is_file():
        return {}
    results = read_json(path)["results"]
    tasks = {name: TaskResult([Prediction(**p) for p in result]) for name, result in results.items()}
    return {
        name: {"accuracy": t.accuracy, "control": t.control, "blind": t.blind, "questions": len(t.predictions)}
        for name, t in tasks.items()
    }
