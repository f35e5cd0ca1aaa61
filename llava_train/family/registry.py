"""Which family a model is of. A further family is a line in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llava_train.family.base import LANGUAGE_MODELS, Family
from llava_train.family.onevision.family import OneVision
from llava_train.shared.errors import Fault

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ORIGINAL = "mm_vision_tower"  # in the config.json of a checkpoint of the original trainer
FAMILIES: tuple[Family, ...] = (OneVision(),)


def family_of(config: PretrainedConfig | Mapping[str, Any]) -> Family:
    """The family of a model by its config.json. Raises LookupError where it is of none."""
    content = config if isinstance(config, Mapping) else config.to_dict()
    for family in FAMILIES:
        if family.takes(content):
            return family
    raise LookupError(f"model_type {content.get('model_type')} is of no family")


def family_of_parts(tower: Mapping[str, Any]) -> Family:
    """The family that joins a language model to a tower with this config.json: the first that takes the tower."""
    return next((family for family in FAMILIES if family.tower_fault("", tower) is None), FAMILIES[0])


def tiny_family() -> Family:
    """The one of `model.init=tiny`."""
    return FAMILIES[0]


def checkpoint_fault(path: str, config: Mapping[str, Any]) -> Fault | None:
    """What keeps the whole model with this config.json from a run; `path` as the user gave it."""
    try:
        return family_of(config).checkpoint_fault(path, config)
    except LookupError:
        pass
    kind = config.get("model_type")
    classes = " or ".join(family.model_class.removesuffix("ForConditionalGeneration") for family in FAMILIES)
    remedy = f"start from a {classes} checkpoint, or from parts"
    if ORIGINAL in config:
        remedy = f"convert it: python -m llava_train convert original={path} out=DIR"
    elif kind in LANGUAGE_MODELS:
        remedy = f"start from it as a part: model.init= model.language_model={path} model.vision_tower=DIR"
    known = " or ".join(family.model_type for family in FAMILIES)
    return Fault("model.init", f"{path} holds a {kind} model, not {known}", remedy)


def tower_fault(path: str, config: Mapping[str, Any]) -> Fault | None:
    """What keeps the vision tower with this config.json from a run; `path` as the user gave it."""
    return family_of_parts(config).tower_fault(path, config)
