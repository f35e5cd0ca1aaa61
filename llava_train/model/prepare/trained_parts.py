"""Which parameters train: three parts, each whole, by adapters, or frozen."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from llava_train.config.schema import LearningRate, LearningRates
from llava_train.costs.dims import num_tower_layers
from llava_train.family.base import HFModel

Part = Literal["vision_tower", "projector", "language_model"]
PARTS: tuple[Part, ...] = get_args(Part)

# image_newline trains with the language model, as in LLaVA-NeXT (commit b42941c): frozen where that is
PATTERNS: dict[Part, re.Pattern[str]] = {
    "vision_tower": re.compile(r"^model\.vision_tower\."),
    "projector": re.compile(r"^model\.multi_modal_projector\."),
    "language_model": re.compile(r"^(model\.language_model\.|lm_head\.|model\.image_newline$)"),
}
NO_DECAY = re.compile(r"(\.bias$|norm\d?\.weight$|layernorm\.weight$|image_newline$|\.lora_magnitude_vector\.)")
_ADAPTER = re.compile(r"\.lora_(A|B|magnitude_vector)(\.|$)")


def part_of(name: str) -> Part:
    """The part of a parameter, by its name in the transformers model."""
    parts = [part for part, pattern in PATTERNS.items() if pattern.search(name)]
    if len(parts) != 1:
        raise ValueError(f"parameter {name} belongs to {parts or 'no part'}; it must belong to exactly one of {PARTS}")
    return parts[0]


def is_adapter(name: str) -> bool:
    """Whether PEFT's name of a parameter is that of an adapter's own."""
    return _ADAPTER.search(name) is not None


def is_unused(name: str, config: Any) -> bool:
    """Whether the forward never reads it: the tower's final norm, and layers above the chosen hidden state."""
    if name.startswith("model.vision_tower.post_layernorm."):
        return True
    layer = re.match(r"model\.vision_tower\.encoder\.layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= num_tower_layers(config)


def learning_rate_of(rates: LearningRates, part: Part) -> LearningRate:
    return getattr(rates, part)


def set_trainable(hf_model: HFModel, rates: LearningRates, adapted: Container[str] = ()) -> None:
    """Every parameter of a part with a learning rate requires a gradient; frozen parts and unused parameters do not.

    Of the parts in `adapted` only the adapters do. Call after they are injected.
    """
    for name, parameter in hf_model.named_parameters():
        part = part_of(name)
        frozen = learning_rate_of(rates, part) == "frozen" or is_unused(name, hf_model.config)
        parameter.requires_grad_(not frozen and (part not in adapted or is_adapter(name)))


def parameter_groups(hf_model: HFModel, rates: LearningRates, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: {name, params, lr, weight_decay}, one per trained part.

    With weight decay a part has a second group, without it, for biases, norm weights and image_newline. Each trainable
    parameter is in exactly one group and no group is empty. Call after `set_trainable`.
    """
    groups: list[dict[str, Any]] = []
    trainable = {name: p for name, p in hf_model.named_parameters() if p.requires_grad}
    for part in PARTS:
        names = [name for name in trainable if part_of(name) == part]
        if not names and learning_rate_of(rates, part) != "frozen":
            raise ValueError(f"nothing to train in {part}: set its learning rate to frozen")
        kept = [name for name in names if weight_decay > 0 and NO_DECAY.search(name)]
        decayed = [name for name in names if name not in set(kept)]
        for suffix, members, decay in (("", decayed, weight_decay), ("_no_decay", kept, 0.0)):
            if members:
                params = [trainable[name] for name in members]
                rate = learning_rate_of(rates, part)
                groups.append({"name": part + suffix, "params": params, "lr": rate, "weight_decay": decay})
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(trainable), "a parameter is in no group or in two"
    return groups


def num_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for: in 4 bits a byte holds two, and under ZeRO-3 its own shape is empty."""
    state: Any = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else getattr(parameter, "ds_numel", parameter.numel())


@dataclass(frozen=True)
class PartRow:
    """A line of the table at the start of a stage."""

    part: Part
    num_parameters: int
    num_trainable: int
    source: str


def part_table(hf_model: nn.Module, sources: dict[Part, str]) -> list[PartRow]:
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in hf_model.named_parameters():
        size = num_weights(parameter)
        counts[part_of(name)][0] += size
        counts[part_of(name)][1] += size if parameter.requires_grad else 0
    rows = ((part, counts[part]) for part in PARTS)
    return [PartRow(part, total, trains, sources[part]) for part, (total, trains) in rows]
