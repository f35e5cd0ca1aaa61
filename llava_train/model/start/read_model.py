"""What data must know of a model, read from its config and tokenizer alone: no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from llava_train.config.schema import ModelConfig
from llava_train.costs.dims import KNOWN_DIMS, ModelDims, join_dims, read_dims
from llava_train.family.base import Family
from llava_train.family.registry import FAMILIES, family_of, family_of_parts
from llava_train.model.start.start_faults import open_start, open_starts, rows_faults
from llava_train.records.tags import IMAGE_TAG, TAGS, VIDEO_TAG
from llava_train.shared.errors import ConfigError
from llava_train.start_folder.find import is_hub_name
from llava_train.start_folder.read import Start
from llava_train.text.checkpoint_template import read_chat_template
from llava_train.text.placeholders import add_tags, prepare_tokenizer

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what transformers raises on odd files


@dataclass(frozen=True)
class ModelSettings:
    """tile_size, patch_size: of the vision tower, in pixels."""

    tile_size: int
    patch_size: int
    image_token_id: int
    video_token_id: int


def read_model(model: ModelConfig) -> tuple[ModelSettings, PreTrainedTokenizerBase]:
    """Settings and prepared tokenizer of `model.init`, or of the parts. Raises ConfigError."""
    starts = open_starts(model, weights=False)
    if model.init:
        settings = read_settings(starts[0])
        return settings, read_tokenizer(starts[0], settings)
    return join_settings(*starts)


def join_settings(language_model: Start, tower: Start) -> tuple[ModelSettings, PreTrainedTokenizerBase]:
    """Of two parts, with a tokenizer that has `<image>` and `<video>`. Raises ConfigError."""
    vision = read_config(tower)
    vision = getattr(vision, "vision_config", vision)
    tokenizer = _tokenizer(language_model)
    own = (i for token, i in tokenizer.get_vocab().items() if token not in TAGS.values())
    if faults := rows_faults(language_model, max(own, default=0) + 1):
        raise ConfigError(faults)
    add_tags(tokenizer)
    ids = tokenizer.get_added_vocab()
    return ModelSettings(vision.image_size, vision.patch_size, ids[IMAGE_TAG], ids[VIDEO_TAG]), tokenizer


def model_family(model: ModelConfig) -> Family:
    """As `model_dims`: of `model.init`, or of the parts. Raises ConfigError."""
    if _is_here(model.init):
        return family_of(open_start("model.init", model.init, weights=False).config)
    if model.language_model in KNOWN_DIMS and not Path(model.language_model).is_dir():
        return FAMILIES[0]
    return family_of_parts(open_start("model.vision_tower", model.vision_tower, weights=False).config)


def model_dims(model: ModelConfig) -> ModelDims:
    """Dimensions of `model.init`; where a run has yet to write that folder, those of the parts. Raises ConfigError.

    Parts of the sizes in configs/model/ need not be on this machine.
    """
    if _is_here(model.init):
        return read_dims(read_config(open_start("model.init", model.init, weights=False)))
    if model.language_model in KNOWN_DIMS and not Path(model.language_model).is_dir():
        return KNOWN_DIMS[model.language_model]
    tower = read_config(open_start("model.vision_tower", model.vision_tower, weights=False))
    text = read_config(open_start("model.language_model", model.language_model, weights=False))
    return join_dims(text, getattr(tower, "vision_config", tower))


def _is_here(init: str) -> bool:
    """Whether a checkpoint can be read: a run may have yet to write it."""
    return bool(init) and (Path(init).is_dir() or is_hub_name(init))


def read_settings(start: Start) -> ModelSettings:
    """Settings from the config.json of a checkpoint. Raises ConfigError."""
    config: Any = read_config(start)
    tower = config.vision_config
    return ModelSettings(tower.image_size, tower.patch_size, config.image_token_index, config.video_token_index)


def read_tokenizer(start: Start, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with `<image>` and `<video>` at the ids of its config, and its chat template.

    Raises ConfigError.
    """
    tokenizer = _tokenizer(start)
    tokenizer.chat_template = read_chat_template(start.folder, tokenizer)
    prepare_tokenizer(tokenizer, settings.image_token_id, settings.video_token_id)
    if faults := rows_faults(start, len(tokenizer)):
        raise ConfigError(faults)
    return tokenizer


def read_config(start: Start) -> PretrainedConfig:
    """config.json as transformers reads it. Raises ConfigError."""
    try:
        return AutoConfig.from_pretrained(start.folder, trust_remote_code=False)
    except (*UNREADABLE, StrictDataclassError) as error:
        raise _unreadable(start, "config", error) from error


def _tokenizer(start: Start) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(start.folder, trust_remote_code=False)
    except UNREADABLE as error:
        raise _unreadable(start, "tokenizer", error) from error


def _unreadable(start: Start, what: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:300]
    if "trust_remote_code" in reason or "custom code" in reason:
        problem = (
            f"the {what} of {start.name!r} is made by code of its own (auto_map), and no code of a checkpoint runs"
        )
        remedy = f"if transformers has such a {what} itself, remove auto_map and the class's name from its JSON file"
        return ConfigError.one(start.key, problem, remedy)
    remedy = "give a folder that holds config.json and tokenizer files, or a hub name"
    return ConfigError.one(start.key, f"no {what} can be read from {start.name!r}: {reason}", remedy)
