"""What data must know of a model, read from its config and tokenizer alone: no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from llava_train.config.errors import ConfigError, Fault
from llava_train.config.files import is_hub_name
from llava_train.config.schema import ModelConfig
from llava_train.family.onevision.chat import read_chat_template
from llava_train.family.onevision.cost import KNOWN, ModelDims, join_dims, read_dims
from llava_train.family.onevision.start import language_model_fault, tower_fault
from llava_train.family.onevision.template import IMAGE_TAG, VIDEO_TAG
from llava_train.family.onevision.tokens import add_tags, prepare_tokenizer

MODEL_TYPE = "llava_onevision"


@dataclass(frozen=True)
class OneVisionSettings:
    """tile_size, patch_size: of the vision tower, in pixels."""

    tile_size: int
    patch_size: int
    image_token_id: int
    video_token_id: int


def read_model(model: ModelConfig) -> tuple[OneVisionSettings, PreTrainedTokenizerBase]:
    """Settings and prepared tokenizer of `model.init`, or of the parts. Raises ConfigError."""
    if model.init:
        settings = read_config(model.init)
        return settings, read_tokenizer(model.init, settings)
    found = (
        language_model_fault(model.language_model, _content(model.language_model, "model.language_model")),
        tower_fault(model.vision_tower, _content(model.vision_tower, "model.vision_tower")),
    )
    if faults := [fault for fault in found if fault]:
        raise ConfigError(faults)
    tower = _config(model.vision_tower, "model.vision_tower")
    tower = getattr(tower, "vision_config", tower)
    tokenizer = _tokenizer(model.language_model, "model.language_model")
    add_tags(tokenizer)
    ids = tokenizer.get_added_vocab()
    return OneVisionSettings(tower.image_size, tower.patch_size, ids[IMAGE_TAG], ids[VIDEO_TAG]), tokenizer


def model_dims(model: ModelConfig) -> ModelDims:
    """Dimensions of `model.init`; where a run has yet to write that folder, those of the parts. Raises ConfigError.

    Parts of the sizes in configs/model/ need not be on this machine.
    """
    if model.init and (Path(model.init).is_dir() or is_hub_name(model.init)):
        return read_dims(_config(model.init, "model.init"))
    if model.language_model in KNOWN and not Path(model.language_model).is_dir():
        return KNOWN[model.language_model]
    tower = _config(model.vision_tower, "model.vision_tower")
    text = _config(model.language_model, "model.language_model")
    return join_dims(text, getattr(tower, "vision_config", tower))


def read_config(folder_or_name: str) -> OneVisionSettings:
    """Settings from the config.json of a LlavaOnevision checkpoint; the folder needs no weights. Raises ConfigError."""
    config = _config(folder_or_name, "model.init")
    if config.model_type != MODEL_TYPE:
        problem = f"{folder_or_name} holds a {config.model_type} model, not {MODEL_TYPE}"
        raise ConfigError([Fault("model.init", problem, "start from a LlavaOnevision checkpoint, or from parts")])
    tower = config.vision_config
    return OneVisionSettings(tower.image_size, tower.patch_size, config.image_token_index, config.video_token_index)


def read_tokenizer(folder_or_name: str, settings: OneVisionSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with `<image>` and `<video>` at the ids of its config, and its chat template.

    Raises ConfigError.
    """
    tokenizer = _tokenizer(folder_or_name, "model.init")
    tokenizer.chat_template = read_chat_template(folder_or_name, tokenizer)
    prepare_tokenizer(tokenizer, settings.image_token_id, settings.video_token_id)
    return tokenizer


def _content(folder_or_name: str, key: str) -> dict[str, Any]:
    """config.json as it is written, of a type that transformers need not know."""
    try:
        return PretrainedConfig.get_config_dict(folder_or_name)[0]
    except (OSError, ValueError) as error:
        raise _unreadable(folder_or_name, key, "config", error) from error


def _config(folder_or_name: str, key: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder_or_name)
    except (OSError, ValueError) as error:
        raise _unreadable(folder_or_name, key, "config", error) from error


def _tokenizer(folder_or_name: str, key: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder_or_name)
    except (OSError, ValueError) as error:
        raise _unreadable(folder_or_name, key, "tokenizer", error) from error


def _unreadable(folder_or_name: str, key: str, what: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0]
    remedy = "give a folder that holds config.json and tokenizer files, or a hub name"
    return ConfigError([Fault(key, f"no {what} can be read from {folder_or_name!r}: {reason}", remedy)])
