"""The model of a run from its weights: one LlavaOnevision checkpoint, or a language model and a SigLIP tower.

Weights are read from safetensors alone, no code from a checkpoint runs, and every key must fit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_train.config.errors import ConfigError, Fault
from llava_train.config.schema import GenerateModel, ModelConfig, Precision
from llava_train.family.onevision.settings import read_config, read_model, read_tokenizer
from llava_train.model.tiny import make_tiny
from llava_train.model.trainable import PARTS, Part

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
TINY = "tiny"


@dataclass(frozen=True)
class LoadedModel:
    """The model in the precision asked for, its tokenizer with `<image>` and `<video>`, and each part's origin."""

    model: LlavaOnevisionForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    sources: dict[Part, str]


def resolve_init(model: ModelConfig, cache_dir: Path) -> ModelConfig:
    """`model` with `init: tiny` replaced by the folder of a random checkpoint, made in `cache_dir` once."""
    return replace(model, init=str(make_tiny(cache_dir / TINY))) if model.init == TINY else model


def load_model(model: ModelConfig, precision: Precision, cache_dir: Path, seed: int = 0) -> LoadedModel:
    """Loads `model.init`, or builds from `model.language_model` and `model.vision_tower` with a new projector.

    `seed` draws the new projector and newline. Raises ConfigError where weights are absent or a key is missing,
    unexpected or of another shape.
    """
    model = resolve_init(model, cache_dir)
    return load_checkpoint(model, DTYPES[precision]) if model.init else _from_parts(model, DTYPES[precision], seed)


def load_checkpoint(model: ModelConfig | GenerateModel, dtype: torch.dtype | Literal["auto"]) -> LoadedModel:
    """The LlavaOnevision checkpoint `model.init`. dtype auto: as stored."""
    tokenizer = read_tokenizer(model.init, read_config(model.init))
    hf_model = _load(LlavaOnevisionForConditionalGeneration, "model.init", model.init, dtype)
    config = hf_model.config
    if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != "full":
        told = f"vision_feature_layer {config.vision_feature_layer}, {config.vision_feature_select_strategy}"
        raise _error("model.init", told, "use a checkpoint with one vision_feature_layer and the strategy full")
    return LoadedModel(hf_model, tokenizer, dict.fromkeys(PARTS, model.init))


def _from_parts(model: ModelConfig, dtype: torch.dtype, seed: int) -> LoadedModel:
    settings, tokenizer = read_model(model)
    language_model = _load(AutoModelForCausalLM, "model.language_model", model.language_model, dtype)
    tower = _load_tower(model.vision_tower, dtype)
    image_id, video_id, tile = settings.image_token_id, settings.video_token_id, settings.tile_size
    vocabulary = language_model.config.vocab_size
    if max(image_id, video_id) >= vocabulary:
        problem = f"{vocabulary} embedding rows hold no <image> and <video> (tokens {image_id} and {video_id})"
        remedy = "use a language model with at least two embedding rows more than its tokenizer has tokens"
        raise _error("model.language_model", problem, remedy)
    config = LlavaOnevisionConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        image_grid_pinpoints=[[rows * tile, columns * tile] for rows in range(1, 7) for columns in range(1, 7)],
        image_token_index=image_id,
        video_token_index=video_id,
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        hf_model = LlavaOnevisionForConditionalGeneration(config)
    hf_model.model.vision_tower = tower
    hf_model.model.language_model = language_model.model
    hf_model.lm_head = language_model.lm_head
    _new_projector(hf_model, dtype, seed)
    sources: dict[Part, str] = {
        "vision_tower": model.vision_tower,
        "projector": f"new, seed {seed}",
        "language_model": model.language_model,
    }
    return LoadedModel(hf_model.eval(), tokenizer, sources)


def _new_projector(hf_model: LlavaOnevisionForConditionalGeneration, dtype: torch.dtype, seed: int) -> None:
    """Linear layers as torch's own default draws them, image_newline with std 1/sqrt(hidden): LLaVA-NeXT, b42941c."""
    generator = torch.Generator().manual_seed(seed)
    projector = hf_model.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for linear in (projector.linear_1, projector.linear_2):
            bound = 1 / math.sqrt(linear.in_features)
            for parameter in linear.parameters():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    hidden = hf_model.model.multi_modal_projector.linear_2.out_features
    newline = torch.empty(hidden).normal_(std=1 / math.sqrt(hidden), generator=generator)
    hf_model.model.image_newline = nn.Parameter(newline.to(dtype))


def _load_tower(folder: str, dtype: torch.dtype) -> SiglipVisionModel:
    """A SigLIP tower. A published one (with its pooling head) loses the head and its last layer.

    LLaVA-OneVision reads the output of layer 26 of SO400M's 27: the last hidden state of the tower cut so.
    A tower whose config has `vision_use_head: false` is taken whole.
    """
    config = AutoConfig.from_pretrained(folder)
    config = getattr(config, "vision_config", config)
    if not isinstance(config, SiglipVisionConfig):
        problem = f"{folder}: {config.model_type} is not a SigLIP tower"
        raise _error("model.vision_tower", problem, "use a SigLIP checkpoint")
    dropped = r"^(text_model\.|logit_)"
    if config.vision_use_head:
        config.vision_use_head = False
        config.num_hidden_layers -= 1
        dropped += rf"|^(vision_model\.)?(head\.|encoder\.layers\.{config.num_hidden_layers}\.)"
    return _load(SiglipVisionModel, "model.vision_tower", folder, dtype, config=config, dropped=dropped)


def _load(model_class: Any, key: str, folder: str, dtype: torch.dtype | str, dropped: str = "^$", **kwargs: Any) -> Any:
    """`from_pretrained` that refuses any key that does not fit, but for unexpected ones that match `dropped`."""
    try:
        loaded, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, then refused below, together with the others
            output_loading_info=True,
            attn_implementation="sdpa",
            **kwargs,
        )
    except OSError as error:
        raise _error(key, str(error), "name a folder or hub checkpoint with safetensors weights") from error
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(name for name in info["unexpected_keys"] if not re.search(dropped, name)),
        "of another shape": sorted(name for name, *_ in info["mismatched_keys"]),
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise _error(
            key, f"{folder} does not fit {type(loaded).__name__}: {told}", "use a checkpoint of this architecture"
        )
    return loaded


def _error(key: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Fault(key, problem, remedy)])
