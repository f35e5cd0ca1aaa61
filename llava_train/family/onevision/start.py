"""Whether a run can start from its folders: one table of what is refused, for every verb that reads a model.

Judged by JSON files and the headers of weights alone, without a heavy library, before anything loads; a hub name by the
same rules, as far as its files are here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

from llava_train.config.schema import Config, ModelConfig
from llava_train.records.tags import IMAGE_TAG, TAGS, VIDEO_TAG
from llava_train.shared.errors import ConfigError, Fault
from llava_train.start_folder.find import TINY, folder_here, has_all_weights, is_hub_name, local_folder
from llava_train.start_folder.read import Start, read_start
from llava_train.text.base import NamedTemplate, TemplateName
from llava_train.text.named_templates import make_template
from llava_train.text.placeholder_ids import index_of, tag_fault

MODEL_TYPE = "llava_onevision"
ORIGINAL = "mm_vision_tower"  # in the config.json of a checkpoint of the original trainer
LANGUAGE_MODELS = ("qwen2", "qwen3", "llama", "mistral")  # Qwen2.5 is a qwen2, Vicuna a llama
TOWERS = ("siglip", "siglip_vision_model")  # fixed-resolution SigLIP2 checkpoints are of these types as well
# tokens that a start need not have rows for: a language model alone gets those of the tags that it lacks
OWN_ROWS: dict[str, tuple[str, ...]] = {
    "model.init": (),
    "model.language_model": (IMAGE_TAG, VIDEO_TAG),
    "model.vision_tower": (),
}
_RATIO = re.compile(r"anyres_max_\d+")
TOWER_REMEDY = "use a SigLIP or fixed-resolution SigLIP2 tower, as google/siglip-so400m-patch14-384"


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


def checkpoint_fault(path: str, config: dict[str, Any]) -> Fault | None:
    """What keeps the whole model with this config.json from a run; `path` as the user gave it."""
    key, kind = "model.init", config.get("model_type")
    if kind != MODEL_TYPE:
        remedy = "start from a LlavaOnevision checkpoint, or from parts"
        if ORIGINAL in config:
            remedy = f"convert it: python -m llava_train convert original={path} out=DIR"
        elif kind in LANGUAGE_MODELS:
            remedy = f"start from it as a part: model.init= model.language_model={path} model.vision_tower=DIR"
        return Fault(key, f"{path} holds a {kind} model, not {MODEL_TYPE}", remedy)
    inner = (("text_config", "qwen2", LANGUAGE_MODELS), ("vision_config", TOWERS[1], TOWERS))
    for name, default, known in inner:
        if (kind := (config.get(name) or {}).get("model_type", default)) not in known:
            problem = f"the {name} of {path} is of type {kind}, which no run is known to work with"
            return Fault(key, problem, f"use a checkpoint of one of these: {', '.join(known)}")
    layer, strategy = config.get("vision_feature_layer", -1), config.get("vision_feature_select_strategy", "full")
    if not isinstance(layer, int) or strategy != "full":
        problem = f"{path}: vision_feature_layer {layer}, vision_feature_select_strategy {strategy}"
        return Fault(key, problem, "use a checkpoint with one vision_feature_layer and the strategy full")
    if not _RATIO.fullmatch(ratio := str(config.get("vision_aspect_ratio", "anyres_max_9"))):
        problem = f"{path}: vision_aspect_ratio {ratio}, which transformers cannot apply either"
        return Fault(key, problem, "write anyres_max_N in config.json: features are downscaled to about N tiles")
    return None


def language_model_fault(path: str, config: dict[str, Any]) -> Fault | None:
    """What keeps the language model with this config.json from a run; `path` as the user gave it."""
    kind = config.get("model_type")
    if kind in LANGUAGE_MODELS:
        return None
    remedy = f"name a causal language model of a type that is known to work: {', '.join(LANGUAGE_MODELS)}"
    problem = f"{path} holds a {kind} model"
    if kind == "llava_onevision":
        return Fault(
            "model.language_model", f"{problem}, vision tower and all", f"start from it whole: model.init={path}"
        )
    if any(name in config for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        problem += ", a mixture of experts, whose weights transformers 4.57 and 5 name differently"
    elif any(name.endswith(("vision_config", "audio_config", "thinker_config")) for name in config):
        problem += ", which is no language model alone"
    return Fault("model.language_model", problem, remedy)


def tower_fault(path: str, config: dict[str, Any]) -> Fault | None:
    """What keeps the vision tower with this config.json from a run; `path` as the user gave it."""
    kind = str(config.get("model_type"))
    if kind in TOWERS:
        return None
    problem = f"{path} holds a {kind} model"
    if kind.startswith("siglip2"):
        problem += ": SigLIP2 NaFlex, whose linear patch embedding takes no square tiles"
        return Fault(
            "model.vision_tower", problem, "use its fixed-resolution sister, as google/siglip2-so400m-patch14-384"
        )
    if kind.startswith("clip"):
        problem += ", the tower of LLaVA-1.5 and LLaVA-NeXT; LLaVA-OneVision takes SigLIP"
    return Fault("model.vision_tower", problem, TOWER_REMEDY)


_TYPES = {
    "model.init": checkpoint_fault,
    "model.language_model": language_model_fault,
    "model.vision_tower": tower_fault,
}


def template_fault(stage_name: str, template: TemplateName, tokens: Collection[str]) -> Fault | None:
    """Refuses a template with a special token that is not a token of its own: not among the tokenizer's added ones."""
    missing = _missing(template, tokens)
    if not missing:
        return None
    fitting = [name for name in get_args(NamedTemplate) if not _missing(name, tokens)]
    key = f"stages.{stage_name}.template"
    remedy = f"set {key}={' or '.join(fitting)}, or choose a language model whose tokenizer has them"
    return Fault(key, f"{template} needs {' and '.join(missing)}, which the model's tokenizer lacks", remedy)


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


def _missing(template: TemplateName, tokens: Collection[str]) -> list[str]:
    if template == "checkpoint":
        return []
    return [token for token in make_template(template, "clean", "front").special_tokens if token not in tokens]


def _window(text: dict[str, Any]) -> int | None:
    """Tokens that a layer looks back, where that is limited. Mistral's is on, and 4096, unless its config says else."""
    is_on = text.get("use_sliding_window", text.get("model_type") == "mistral")
    return text.get("sliding_window", 4096) if is_on else None
