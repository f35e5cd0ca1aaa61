"""Low-rank adapters in a model's own layers, and their folder as PEFT reads it.

PEFT makes the layers; which get one is decided here, within each part and by full names. Parameters then have PEFT's
names: `q_proj.base_layer.weight` is the frozen weight, `q_proj.lora_A.default.weight` the adapter's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava_train.config.schema import LoraConfig, StageConfig
from llava_train.family.base import HFModel
from llava_train.model.files.tensor_files import Spec, write_tensors
from llava_train.model.prepare.peft_folder import PREFIX, fault, read_peft_folder
from llava_train.model.prepare.trained_parts import PARTS, Part, is_adapter, is_unused, learning_rate_of, part_of
from llava_train.shared.errors import ConfigError
from llava_train.start_folder.find import ADAPTER_CONFIG, ADAPTER_FILES

if TYPE_CHECKING:  # it takes seconds to import, and only adapters need it
    from peft import LoraConfig as PeftConfig

MODULES: dict[Part, str] = {
    "vision_tower": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "language_model": "model.language_model",
}
_ADAPTER_NAME = ".default"  # what PEFT calls an adapter that was given no name; left out in files


def inject(hf_model: HFModel, lora: Mapping[str, LoraConfig], seed: int) -> None:
    """Puts adapters into the layers that `lora` names by part, in place; `seed` draws them.

    Raises ConfigError where a target is no linear layer of its part.
    """
    from peft import inject_adapter_in_model

    config = peft_config(hf_model, lora)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, hf_model)
    adapted = {part_of(name) for name, _ in hf_model.named_parameters() if is_adapter(name)}
    assert adapted == set(lora), f"adapters in {adapted} instead of {set(lora)}"


def peft_config(
    hf_model: nn.Module, lora: Mapping[str, LoraConfig], base: str = "", saved: tuple[str, ...] = ()
) -> Any:
    """PEFT's form of the settings. base: name of the model below; saved: modules that are trained and stored whole."""
    from peft import LoraConfig as PeftConfig

    shared = next(iter(lora.values()))
    largest = max(lora.values(), key=lambda settings: settings.rank)
    return PeftConfig(
        r=largest.rank,
        lora_alpha=_whole(largest.alpha),
        rank_pattern={_inside(part): settings.rank for part, settings in lora.items() if settings.rank != largest.rank},
        alpha_pattern={
            _inside(part): _whole(settings.alpha) for part, settings in lora.items() if settings.alpha != largest.alpha
        },
        target_modules="|".join(_pattern(hf_model, part, settings) for part, settings in lora.items()),
        lora_dropout=shared.dropout,
        use_rslora=shared.rslora,
        use_dora=shared.dora,
        init_lora_weights=True if shared.init == "default" else shared.init,  # type: ignore[arg-type]
        modules_to_save=list(saved) or None,
        base_model_name_or_path=base,
    )


def _whole(alpha: float) -> Any:
    return int(alpha) if alpha == int(alpha) else alpha


def _inside(part: str) -> str:
    """Pattern of the names of all modules of a part."""
    return re.escape(MODULES[part]) + r"\..*"  # type: ignore[index]


def _pattern(hf_model: Any, part: str, settings: LoraConfig) -> str:
    """Pattern of the full names of the part's target modules; layers that the forward never reaches are no targets."""
    prefix = MODULES[part] + "."  # type: ignore[index]
    linear = {
        name.removeprefix(prefix): module.weight
        for name, module in hf_model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear) and not is_unused(name + ".", hf_model.config)
    }
    names = {name.rpartition(".")[2] for name in linear}
    wanted = names if settings.targets == "all" else set(_listed(settings.targets))
    absent = [name for name in sorted(wanted) if not any(f".{m}".endswith(f".{name}") for m in linear)]
    if absent:
        known = ", ".join(sorted(names))
        problem = f"no linear layer of {part} is called {', '.join(absent)}"
        raise ConfigError.one(f"lora.{part}.targets", problem, f"known there: {known}; or all")
    ends = "|".join(map(re.escape, sorted(wanted)))
    if part != "vision_tower":
        return rf"{re.escape(prefix)}(?:.*\.)?(?:{ends})"
    layers = sorted({int(m[1]) for m in (re.match(r"encoder\.layers\.(\d+)\.", name) for name in linear) if m})
    return rf"{re.escape(prefix)}encoder\.layers\.(?:{'|'.join(map(str, layers))})\.(?:.*\.)?(?:{ends})"


def _listed(targets: str | list[str]) -> list[str]:
    return [targets] if isinstance(targets, str) else targets


def without_adapter(name: str) -> str:
    """A parameter's name without adapters: `q_proj.base_layer.weight` -> `q_proj.weight`."""
    return name.replace(".base_layer.", ".")


def peft_key(name: str) -> str:
    """The key in an adapter's file of a trained parameter."""
    name = name.replace(f"{_ADAPTER_NAME}.", ".")
    return PREFIX + (name.removesuffix(".weight") if "lora_magnitude_vector" in name else name)


@dataclass(frozen=True)
class Adapter:
    """The adapter of one weight [out, in]: A [r, in], B [out, r], DoRA's norms [out] or None; fp32, on CPU."""

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None
    scaling: float

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """W + s B A (LoRA), or m (W + s B A) / |W + s B A| with the norm of each row (DoRA); fp32."""
        changed = weight.float() + self.scaling * (self.b.float() @ self.a.float())
        if self.magnitude is None:
            return changed
        return changed * (self.magnitude.float() / changed.norm(dim=1))[:, None]


def scaling(settings: LoraConfig) -> float:
    """alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023)."""
    return settings.alpha / (math.sqrt(settings.rank) if settings.rslora else settings.rank)


def adapter_of(
    name: str, lora: Mapping[str, LoraConfig], names: Mapping[str, Any], read: Callable[[str], torch.Tensor]
) -> Adapter | None:
    """The adapter of the plain parameter `name`, or None. names: all that `read` can give, in PEFT's names."""
    module = name.removesuffix(".weight")
    a = f"{module}.lora_A{_ADAPTER_NAME}.weight"
    if a not in names:
        return None
    magnitude = f"{module}.lora_magnitude_vector{_ADAPTER_NAME}.weight"
    norms = read(magnitude) if magnitude in names else None
    return Adapter(read(a), read(a.replace(".lora_A.", ".lora_B.")), norms, scaling(lora[part_of(name)]))


def saved_modules(stage: StageConfig) -> tuple[str, ...] | None:
    """Modules that the stage trains whole beside its adapters; None where an adapter cannot hold all that it trains."""
    whole = [
        part for part in PARTS if part not in stage.lora and learning_rate_of(stage.learning_rate, part) != "frozen"
    ]
    return None if "language_model" in whole else tuple(MODULES[part].rpartition(".")[2] for part in whole)


def adapter_names(hf_model: HFModel, config: Any) -> list[str]:
    """What the folder of an adapter holds, in the model's own names; puts the adapter's layers into `hf_model`."""
    from peft import inject_adapter_in_model

    saved = [name for name, _ in _of_modules(hf_model, config.modules_to_save or [])]
    alone = copy(config)
    alone.modules_to_save = None
    inject_adapter_in_model(alone, hf_model, low_cpu_mem_usage=True)
    return [name for name, _ in hf_model.named_parameters() if is_adapter(name)] + saved


def write_adapter(folder: Path, config: PeftConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """adapter_config.json and adapter_model.safetensors. tensors: in the model's own names."""
    by_key = {peft_key(name): tensor for name, tensor in tensors.items()}
    specs = {key: Spec(tensor.dtype, tuple(tensor.shape)) for key, tensor in sorted(by_key.items())}
    write_tensors(folder / ADAPTER_FILES[0], specs, ((key, by_key[key]) for key in specs), {})
    content = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    content["inference_mode"] = True
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def attach_adapter(hf_model: HFModel, folder: Path) -> None:
    """Puts the adapter of a PEFT folder on a plain model, in place: its logits are then those of PeftModel.

    Every key must fit. Raises ConfigError.
    """
    from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import cast_adapter_dtype

    adapter = read_peft_folder(folder, hf_model)
    inject_adapter_in_model(adapter.config, hf_model)
    due = get_peft_model_state_dict(hf_model, save_embedding_layers=False)
    own: dict[str, Any] = dict(hf_model.state_dict(keep_vars=True))  # names tied ones twice
    saved = {name for name in own if name.rpartition(".")[0] in adapter.saved}
    if wrong := _misfits(adapter.tensors, due | {name: own[name] for name in saved}, _embeddings(hf_model, own)):
        raise fault(f"{folder} does not fit the model: {', '.join(wrong[:10])}", "take the model it was trained on")
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            if name in saved:  # a weight of its own, as PEFT's copy is: what was tied with it stays as it was
                module, _, last = name.rpartition(".")
                setattr(hf_model.get_submodule(module), last, nn.Parameter(tensor.to(own[name])))
            elif name in own:
                own[name].copy_(tensor)
    cast_adapter_dtype(hf_model, _ADAPTER_NAME.removeprefix("."))
    loaded: Any = set_peft_model_state_dict(hf_model, {k: t for k, t in adapter.tensors.items() if k not in own})
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    hf_model.requires_grad_(False)


def _misfits(found: Mapping[str, Any], due: Mapping[str, Any], allowed: Mapping[str, Any]) -> list[str]:
    """Names of tensors that are missing, unexpected or of another shape."""
    expected = {name: allowed[name] for name in allowed.keys() & found.keys()} | dict(due)
    shapes, expected_shapes = ({name: tensor.shape for name, tensor in held.items()} for held in (found, expected))
    return sorted(n for n in shapes.keys() | expected_shapes.keys() if shapes.get(n) != expected_shapes.get(n))


def _embeddings(hf_model: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """What PEFT stores beside an adapter that has grown the vocabulary or adapts the embedding."""
    modules = (hf_model.get_input_embeddings(), hf_model.get_output_embeddings())
    theirs = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name: parameter for name, parameter in own.items() if id(parameter) in theirs}


def _of_modules(hf_model: nn.Module, modules: list[str]) -> Iterator[tuple[str, nn.Parameter]]:
    ends = tuple(f".{module}." for module in modules)
    return ((n, p) for n, p in hf_model.named_parameters() if not is_adapter(n) and any(e in f".{n}" for e in ends))
