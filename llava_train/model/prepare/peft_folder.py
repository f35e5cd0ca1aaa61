"""An adapter's folder as PEFT writes it, in the names of transformers 5: what it changes, or why it is not read.

Which modules it adapts, and with which ranks, is decided by the names under which it was trained; transformers has
renamed them twice. Leaves a configuration that names each module in full, and the tensors under the model's own names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava_train.config.rules.adapter import INITS
from llava_train.model.files.start_weights import module_name
from llava_train.model.files.stored_tensors import StoredTensors
from llava_train.model.files.tensor_names import export_name, older_module
from llava_train.shared.errors import ConfigError, shortened
from llava_train.start_folder.files import read_object
from llava_train.start_folder.find import ADAPTER_CONFIG, ADAPTER_FILES

if TYPE_CHECKING:  # it takes seconds to import, and only adapters need it
    from peft import LoraConfig as PeftConfig

PREFIX = "base_model.model."  # of PEFT's keys
# PEFT's options that are honoured, and those that change nothing once it is trained; any other one is refused by name.
_HONOURED = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
}
_WITHOUT_EFFECT = {
    *("peft_type", "peft_version", "task_type", "inference_mode", "auto_mapping", "base_model_name_or_path"),
    *("revision", "lora_dropout", "init_lora_weights", "eva_config", "runtime_config", "megatron_core"),
    "fan_in_fan_out",  # of a layer that the model has not; PEFT puts it back to False
}
_MERGE = "merge it into its base with PEFT (merge_and_unload, save_pretrained) and name that folder as model.init"


def _is_pattern(value: Any) -> bool:
    """Whether it names modules: a list of names, or a regular expression."""
    if isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


_FORMS: dict[str, Callable[[Any], bool]] = {  # what must be there, and how
    "r": lambda value: isinstance(value, int) and value > 0,
    "lora_alpha": lambda value: isinstance(value, int | float),
    "target_modules": _is_pattern,
}


@dataclass(frozen=True)
class PeftFolder:
    """config: each target by its full name. saved: modules that the adapter replaces whole. tensors: the whole file."""

    config: PeftConfig
    saved: list[str]
    tensors: dict[str, torch.Tensor]


def read_peft_folder(folder: Path, hf_model: nn.Module) -> PeftFolder:
    """hf_model: the base, without adapters. Raises ConfigError where the adapter is of a kind that is not read, or
    adapts other modules than its file holds weights of."""
    from peft import LoraConfig as PeftConfig

    files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]  # the first is the one PEFT reads
    if not ((folder / ADAPTER_CONFIG).is_file() and files):
        told = f"{folder} holds no {ADAPTER_CONFIG} with {' or '.join(ADAPTER_FILES)}"
        raise fault(told, "name a folder as PEFT writes it, such as a run's STAGE/adapter")
    content = read_object("adapter", folder / ADAPTER_CONFIG)
    if (kind := content.get("peft_type")) != "LORA":
        raise fault(f"{folder} is a {kind} adapter", f"only LoRA is read; {_MERGE}")
    if wrong := [
        f"{name}={content.get(name)!r}" for name, is_sound in _FORMS.items() if not is_sound(content.get(name))
    ]:
        raise fault(f"{folder / ADAPTER_CONFIG} says {', '.join(wrong)}", "download or copy it again")
    config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    _refuse_other_kinds(folder, config)
    stored = StoredTensors("adapter", files[:1])
    tensors = {module_name(key.removeprefix(PREFIX)): stored.read(key) for key in stored.specs}
    return _in_full(folder, config, tensors, hf_model)


def fault(problem: str, remedy: str) -> ConfigError:
    return ConfigError.one("adapter", problem, remedy)


def _refuse_other_kinds(folder: Path, config: PeftConfig) -> None:
    from peft import LoraConfig as PeftConfig

    if config.init_lora_weights not in (True, False, "eva", *INITS):
        told = f"{folder} is an adapter initialised by {config.init_lora_weights}, which changes its base's weights"
        raise fault(told, f"only LoRA that leaves them as they are is read; {_MERGE}")
    plain = PeftConfig()
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in _HONOURED | _WITHOUT_EFFECT}
    set_ = [f"{name}={value}" for name, value in options.items() if value and value != getattr(plain, name)]
    if set_:
        raise fault(f"{folder} is an adapter with {', '.join(set_)}, which is not read", _MERGE)


def _in_full(folder: Path, config: PeftConfig, tensors: dict[str, torch.Tensor], hf_model: nn.Module) -> PeftFolder:
    """By the names of the transformers that wrote it: the first under which its targets are what the file adapts."""
    from peft.tuners.tuners_utils import check_target_module_exists

    owners = [n for n, m in hf_model.named_modules() if not [*m.children()] and [*m.parameters()]]
    adapted = {key.partition(".lora_")[0] for key in tensors if ".lora_" in key}
    wrong = []
    for spelled in (_as_is, older_module, _before_4_52):
        names = {spelled(name): name for name in owners}
        targets = {name for old, name in names.items() if check_target_module_exists(config, old)}
        if targets == adapted:
            saved = _saved(config.modules_to_save or [], names)
            return PeftFolder(_explicit(config, names, targets), saved, tensors)
        wrong.append(targets ^ adapted)
    differing = min(wrong, key=len)
    lacking, unknown = sorted(differing - adapted), sorted(differing & adapted)
    told = [f"its {ADAPTER_CONFIG} targets {shortened(lacking, 10)}, of which it holds no weights"] * bool(lacking)
    told += [f"it holds weights of {shortened(unknown, 10)}, no target in this model"] * bool(unknown)
    raise fault(f"{folder} does not fit the model: {'; '.join(told)}", "take the model it was trained on")


def _as_is(name: str) -> str:
    """Of transformers 5."""
    return name


def _before_4_52(name: str) -> str:
    """`language_model.model.layers.0`, `vision_tower.vision_model.encoder`: as checkpoints still name them."""
    return export_name(f"{name}.").removesuffix(".")


def _explicit(config: PeftConfig, names: dict[str, str], targets: set[str]) -> PeftConfig:
    """In place: rank and alpha of each target by its full name."""
    from peft.utils.other import get_pattern_key

    def by_name(pattern: dict[str, int] | None) -> dict[str, int]:
        pattern = pattern or {}
        found = {name: pattern.get(get_pattern_key(list(pattern), old)) for old, name in names.items()}
        return {re.escape(name): value for name, value in found.items() if name in targets and value is not None}

    config.rank_pattern, config.alpha_pattern = by_name(config.rank_pattern), by_name(config.alpha_pattern)
    config.target_modules = sorted(targets)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = config.modules_to_save = None
    config.init_lora_weights = True  # every weight of an adapter comes from the file
    return config


def _saved(last_names: list[str], names: dict[str, str]) -> list[str]:
    """The modules, down to those that own parameters, that `modules_to_save` names: as PEFT does, by the ends of their
    names or of a module's above them."""
    above = {old: [*accumulate(old.split("."), "{}.{}".format)] for old in names}
    return [name for old, name in names.items() if any(module.endswith(tuple(last_names)) for module in above[old])]
