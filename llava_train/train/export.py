"""The end of a stage: its weights, gathered tensor by tensor, as a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from llava_train.config.schema import Config
from llava_train.family.onevision.geometry import Geometry
from llava_train.model.build import LoadedModel
from llava_train.model.card import Card
from llava_train.model.hf import Preparation, write_checkpoint
from llava_train.train.engine import Engine
from llava_train.train.stages import Stage


def export(
    engine: Engine,
    loaded: LoadedModel,
    geometry: Geometry,
    config: Config,
    stage: Stage,
    data_counts: dict[str, int],
    summary: dict[str, Any],
) -> None:
    """Writes `STAGE/hf`, whole or not at all. Every rank takes part, rank 0 writes."""
    tensors = _named_tensors(engine)
    if not engine.ranks.is_first:
        for _ in tensors:
            pass
        return
    settings = stage.settings
    preparation = Preparation(geometry, settings.template, settings.tag_policy, settings.video)
    write_checkpoint(
        stage.export,
        tensors,
        loaded.model.config,
        loaded.tokenizer,
        preparation,
        _card(config, stage, data_counts, summary),
    )


def _named_tensors(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in engine.full_parameters():
        yield name.removeprefix("hf_model."), tensor


def _card(config: Config, stage: Stage, data_counts: dict[str, int], summary: dict[str, Any]) -> Card:
    settings = stage.settings
    rates = settings.learning_rate
    start = stage.start.init or f"{stage.start.language_model} and {stage.start.vision_tower}"
    return {
        "recipe": config.run.name,
        "stage": stage.name,
        "init": start,
        "data": data_counts,
        "settings": {
            "learning rates": f"vision tower {rates.vision_tower}, projector {rates.projector}, "
            f"language model {rates.language_model}",
            "global batch": f"{settings.global_batch_size} samples",
            "optimiser steps": str(summary["step"]),
            "schedule": f"{settings.schedule.kind}, warm-up {settings.schedule.warmup_ratio}",
            "precision": settings.precision,
            "template": f"{settings.template}, labels {settings.label_rule}, tags {settings.tag_policy}",
            "seed": str(config.run.seed),
        },
        "figures": {"training loss at the end": summary["loss"], "samples seen": float(summary["num_samples"])},
    }
