"""The language model's linear layers in 4 or 8 bits, by bitsandbytes; every other part in the dtype of the model.

A quantised weight is packed bytes: it cannot train, and adapters on it can. Its model may move to another device, not
to another dtype.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig

from llava_train.family.base import HFModel
from llava_train.model.files.model_class import model_class
from llava_train.model.hf_folder.usage_lines import NOT_QUANTISED
from llava_train.model.hf_folder.weights import expected_specs
from llava_train.model.loading.strict_load import load_strictly
from llava_train.model.prepare.trained_parts import part_of
from llava_train.shared.errors import ConfigError

LoadIn = Literal["none", "4bit", "8bit"]
BLOCK = 64  # weights that share a scale in 4 bits
LAYERS = "model.language_model.layers."
CLASSES = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


def load_quantized(
    key: str, folder: Path, dtype: torch.dtype | Literal["auto"], load_in: LoadIn, **kwargs: Any
) -> HFModel:
    """The checkpoint `folder`, which `key` of the configuration names, quantised while it is read.

    It comes to the current CUDA device where there is one, or as a device_map in `kwargs` says. dtype auto: as its
    config.json says. Raises ConfigError where bitsandbytes is missing, a layer does not fit it, the weights do not fit,
    or other layers than those meant came out quantised.
    """
    if not find_spec("bitsandbytes"):
        raise _fault(f"{load_in} needs bitsandbytes, which is not installed", "pip install 'llava_train[quant]'")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    stored: Any = config.dtype or torch.float32
    compute: torch.dtype = stored if dtype == "auto" else dtype
    if load_in == "4bit":
        _refuse_broken_blocks(folder, config, compute)
    four_bit = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute} if load_in == "4bit" else {}
    settings = BitsAndBytesConfig(**{f"load_in_{load_in}": True}, llm_int8_skip_modules=list(NOT_QUANTISED), **four_bit)
    kwargs["quantization_config"] = settings
    hf_model = load_strictly(model_class(config), key, folder, compute, **kwargs)
    refuse_other_classes(hf_model, load_in)
    _refuse_other_shapes(key, folder, hf_model)
    del hf_model.config.quantization_config  # of the weights in memory: what is written from this config is plain
    for module in hf_model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it repacks at the first evaluation, for good, without backward
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)  # else each 8-bit product tells of its fp16
    return hf_model


def refuse_other_classes(hf_model: nn.Module, load_in: LoadIn) -> None:
    """ConfigError, part by part, where a linear layer of the language model is not quantised or another one is."""
    wrong: dict[tuple[str, str], list[str]] = {}
    for name, module in hf_model.named_modules():
        if isinstance(module, nn.Linear):
            due = CLASSES[load_in] if name.startswith(LAYERS) else "Linear"
            if type(module).__name__ != due:
                where = (part_of(f"{name}.weight"), f"{type(module).__name__} instead of {due}")
                wrong.setdefault(where, []).append(name)
    if wrong:
        told = [f"{part}: {len(n)} layers are {kinds}, as {n[0]}" for (part, kinds), n in wrong.items()]
        raise _fault("; ".join(told), "load a checkpoint that is not quantised itself, or set load_in=none")


def _refuse_other_shapes(key: str, folder: Path, hf_model: nn.Module) -> None:
    """transformers compares no shape of a weight that it quantises."""
    layers: dict[str, Any] = {
        n: m for n, m in hf_model.named_modules() if n.startswith(LAYERS) and isinstance(m, nn.Linear)
    }
    shapes = {name: getattr(layer.weight, "quant_state", layer.weight).shape for name, layer in layers.items()}
    wrong = [f"{n}.weight" for n, shape in shapes.items() if shape != (layers[n].out_features, layers[n].in_features)]
    if wrong:
        problem = f"{folder} does not fit {type(hf_model).__name__}: of another shape: {', '.join(wrong)}"
        raise ConfigError.one(key, problem, "use a checkpoint of this architecture")


def _refuse_broken_blocks(folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> None:
    """bitsandbytes 0.50.2 fails on rows of broken blocks as soon as a CPU with AVX512-BF16 evaluates them."""
    shapes = {n: spec.shape for n, spec in expected_specs(config, dtype).items() if n.startswith(LAYERS)}
    for name, shape in shapes.items():
        if len(shape) == 2 and shape[1] % BLOCK:
            problem = f"{folder}: the rows of {name} have {shape[1]} weights; 4bit needs a multiple of {BLOCK}"
            raise _fault(problem, "set load_in=8bit or none")


def _fault(problem: str, remedy: str) -> ConfigError:
    return ConfigError.one("load_in", problem, remedy)
