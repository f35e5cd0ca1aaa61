"""The model of a run from its weights: one checkpoint, or a language model and a vision tower.

Weights are read from safetensors alone, no code from a checkpoint runs, and every key must fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from llava_train.config.schema import GenerateModel, ModelConfig, Precision
from llava_train.family.base import HFModel
from llava_train.model.files.model_class import model_class
from llava_train.model.loading.join_parts import Load, join_parts
from llava_train.model.loading.quantized import LoadIn, load_quantized
from llava_train.model.loading.strict_load import load_strictly
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.model.prepare.trained_parts import PARTS, Part
from llava_train.model.start.read_model import read_config, read_settings, read_tokenizer
from llava_train.model.start.start_faults import open_start
from llava_train.start_folder.find import TINY

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
DeviceMap = Literal["none", "auto"] | dict[str, str | int]


@dataclass(frozen=True)
class LoadedModel:
    """The model in the precision asked for, its tokenizer with `<image>` and `<video>`, and each part's origin.

    folder: of the checkpoint, on this machine; None where it was joined from parts.
    """

    model: HFModel
    tokenizer: PreTrainedTokenizerBase
    sources: dict[Part, str]
    folder: Path | None = None


def resolve_init(model: ModelConfig, cache_dir: Path) -> ModelConfig:
    """`model` with `init: tiny` replaced by the folder of a random checkpoint, made in `cache_dir` once."""
    return replace(model, init=str(make_tiny(cache_dir / TINY))) if model.init == TINY else model


def load_model(
    model: ModelConfig,
    precision: Precision,
    cache_dir: Path,
    seed: int = 0,
    load_in: LoadIn = "none",
    load: Load = load_strictly,
) -> LoadedModel:
    """Loads `model.init`, or builds from `model.language_model` and `model.vision_tower` with a new projector.

    `seed` draws the new projector and newline. load_in: see `load_checkpoint`; the parts are never quantised. load:
    `load_unread` leaves the weights in their files; what is quantised is read. Raises ConfigError where weights are
    absent or a key is missing, unexpected or of another shape.
    """
    model, dtype = resolve_init(model, cache_dir), DTYPES[precision]
    if model.init:
        return load_checkpoint(model, dtype, load_in, load=load)
    return _from_parts(model, dtype, seed, load)


def load_checkpoint(
    model: ModelConfig | GenerateModel,
    dtype: torch.dtype | Literal["auto"],
    load_in: LoadIn = "none",
    device_map: DeviceMap = "none",
    load: Load = load_strictly,
) -> LoadedModel:
    """The checkpoint `model.init`.

    dtype auto: as stored. load_in: of its language model's linear layers. device_map: where accelerate puts the
    modules; none: on the CPU, quantised on the current CUDA device where there is one.
    """
    places: dict[str, Any] = {} if device_map == "none" else {"device_map": device_map}
    start = open_start("model.init", model.init)
    tokenizer = read_tokenizer(start, read_settings(start))
    if load_in == "none":
        hf_model = load(model_class(read_config(start)), "model.init", start.folder, dtype, **places)
    else:
        hf_model = load_quantized("model.init", start.folder, dtype, load_in, **places)
    return LoadedModel(hf_model, tokenizer, dict.fromkeys(PARTS, model.init), start.folder)


def _from_parts(model: ModelConfig, dtype: torch.dtype, seed: int, load: Load) -> LoadedModel:
    hf_model, tokenizer = join_parts(model, dtype, seed, load)
    sources: dict[Part, str] = {
        "vision_tower": model.vision_tower,
        "projector": f"new, seed {seed}",
        "language_model": model.language_model,
    }
    return LoadedModel(hf_model, tokenizer, sources)
