"""Whether a run can start from its folders: one table of what is refused, for every verb that reads a model.

Judged by JSON files and the headers of weights alone, without a heavy library, before anything loads; a hub name by the
same rules, as far as its files are here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_train.config.schema import Config, ModelConfig
from llava_train.family.base import LANGUAGE_MODELS
from llava_train.family.registry import FAMILIES, checkpoint_fault, tower_fault
from llava_train.records.tags import IMAGE_TAG, TAGS, VIDEO_TAG
from llava_train.shared.errors import ConfigError, Fault
from llava_train.start_folder.find import TINY, folder_here, has_all_weights, is_hub_name, local_folder
from llava_train.start_folder.read import Start, read_start
from llava_train.text.named_templates import template_fault
from llava_train.text.placeholder_ids import index_of, tag_fault

# tokens that a start need not have rows for: a language model alone gets those of the tags that it lacks
OWN_ROWS: dict[str, tuple[str, ...]] = {
    "model.init": (),
    "model.language_model": (IMAGE_TAG, VIDEO_TAG),
    "model.vision_tower": (),
}


def open_start(key: str, name: str, weights: bool = True) -> Start:
    """The start that `key` of the config names. weights: those of a hub name are fetched where they are not here.

    Raises ConfigError with all that keeps a model from being read from it, before anything is.
    """
    start, faults = _judged(key, name, local_folder(key, name, weights))
    if faults:
        raise ConfigError(faults)
    return start


def open_starts(model: ModelConfig, weights: bool = True) -> list[Start]:
    """That of `model.init`, or those of the parts. Raises ConfigError with the faults of all."""
    starts, faults = list[Start](), list[Fault]()
    for key, name in _named(model):
        try:
            starts.append(open_start(key, name, weights))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    return starts


def _named(model: ModelConfig) -> list[tuple[str, str]]:
    if model.init:
        return [("model.init", model.init)]
    parts = {"model.language_model": model.language_model, "model.vision_tower": model.vision_tower}
    return [(key, name) for key, name in parts.items() if name]


def _judged(key: str, name: str, folder: Path) -> tuple[Start, list[Fault]]:
    """The start in `folder` and its faults. Weights of a hub name that are not here yet are not judged."""
    start, faults = read_start(key, name, folder, weights=not is_hub_name(name) or has_all_weights(folder))
    if start.config and (fault := _TYPES[key](name, start.config)):
        faults.append(fault)
    elif not faults:
        faults += rows_faults(start, start.num_tokens(besides=OWN_ROWS[key]))
        if key == "model.init" and not faults:
            faults += [
                fault
                for tag in TAGS.values()
                if (found := start.token_id(tag)) and (fault := tag_fault(tag, found, start.config))
            ]
    return start, faults


def rows_faults(start: Start, num_tokens: int) -> list[Fault]:
    """More tokens than embedding rows. num_tokens: those of the tokenizer that get no rows of their own."""
    tags = (start.config.get(index_of(tag), 0) for tag in TAGS.values())
    needed = max(num_tokens, *(tag + 1 for tag in tags if isinstance(tag, int)))
    if start.rows is None or needed <= start.rows:
        return []
    problem = f"{start.name}: its tokenizer has {needed:,} tokens, its embedding {start.rows:,} rows"
    remedy = f"use the tokenizer that belongs to it, or add rows: resize_token_embeddings({needed}) in transformers"
    return [Fault(start.key, problem, remedy)]


def language_model_fault(path: str, config: dict[str, Any]) -> Fault | None:
    """What keeps the language model with this config.json from a run; `path` as the user gave it."""
    kind = config.get("model_type")
    if kind in LANGUAGE_MODELS:
        return None
    remedy = f"name a causal language model of a type that is known to work: {', '.join(LANGUAGE_MODELS)}"
    problem = f"{path} holds a {kind} model"
    if any(family.takes(config) for family in FAMILIES):
        whole = f"start from it whole: model.init={path}"
        return Fault("model.language_model", f"{problem}, vision tower and all", whole)
    if any(name in config for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        problem += ", a mixture of experts, whose weights transformers 4.57 and 5 name differently"
    elif any(name.endswith(("vision_config", "audio_config", "thinker_config")) for name in config):
        problem += ", which is no language model alone"
    return Fault("model.language_model", problem, remedy)


_TYPES = {
    "model.init": checkpoint_fault,
    "model.language_model": language_model_fault,
    "model.vision_tower": tower_fault,
}


def model_faults(config: Config) -> list[Fault]:
    """Faults of the start as far as its files are on disk: the table above, templates, sliding window."""
    if config.model.init == TINY:
        return []
    faults: list[Fault | None] = []
    starts = dict[str, Start]()
    for key, name in _named(config.model):
        if folder := folder_here(name):
            starts[key], found = _judged(key, name, folder)
            faults += found
    start = starts.get("model.init") or starts.get("model.language_model")
    if start is None:
        return [fault for fault in faults if fault]
    window, tokens = _window(start.config.get("text_config", start.config)), start.added_tokens
    if not faults:
        faults += _chat_faults(config, start)
    for name, stage in config.stages.items():
        if tokens:
            faults.append(template_fault(name, stage.template, tokens))
        if window and stage.max_length > window:
            key = f"stages.{name}.max_length"
            problem = (
                f"{stage.max_length} exceeds the sliding window of {start.name}, {window}: packed rows have no window"
            )
            faults.append(Fault(key, problem, f"set {key}={window}, or choose a language model without a window"))
    return [fault for fault in faults if fault]


def _chat_faults(config: Config, start: Start) -> list[Fault | None]:
    """What keeps the first stage from training by its start's own chat template; later ones start from our exports."""
    name, stage = next(iter(config.stages.items()), ("", None))
    if stage is None or stage.template != "checkpoint" or not config.model.init:
        return []
    from transformers import AutoTokenizer

    from llava_train.text.checkpoint_template import read_chat_template, stage_template

    try:
        tokenizer = AutoTokenizer.from_pretrained(start.folder, trust_remote_code=False)
        tokenizer.chat_template = read_chat_template(start.folder, tokenizer)
        stage_template("checkpoint", stage.label_rule, stage.tag_policy, tokenizer, f"stages.{name}.template")
    except ConfigError as error:
        return list(error.faults)
    except (OSError, ValueError):
        return []  # no tokenizer: told where it is loaded
    return []


def _window(text: dict[str, Any]) -> int | None:
    """Tokens that a layer looks back, where that is limited. Mistral's is on, and 4096, unless its config says else."""
    is_on = text.get("use_sliding_window", text.get("model_type") == "mistral")
    return text.get("sliding_window", 4096) if is_on else None
