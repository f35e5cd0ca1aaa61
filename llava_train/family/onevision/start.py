"""Whether a run can start from its folders, judged by their JSON files alone: no heavy library, no weights.

Folders on disk are judged before anything loads; a hub name is judged by the same rules once its files are here.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

from llava_train.config.errors import ConfigError, Fault
from llava_train.config.schema import Config
from llava_train.family.onevision.template import NamedTemplate, TemplateName, make_template

LANGUAGE_MODELS = ("qwen2", "qwen3", "llama", "mistral")  # Qwen2.5 is a qwen2, Vicuna a llama
TOWERS = ("siglip", "siglip_vision_model")  # fixed-resolution SigLIP2 checkpoints are of these types as well
TOWER_REMEDY = "use a SigLIP or fixed-resolution SigLIP2 tower, as google/siglip-so400m-patch14-384"


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
    """Faults of the start as far as its files are on disk: types of the parts, templates, sliding window."""
    model = config.model
    faults: list[Fault | None] = []
    if not model.init:
        for judge, path in ((language_model_fault, model.language_model), (tower_fault, model.vision_tower)):
            if content := _read(path, "config.json"):
                faults.append(judge(path, content))
    folder = model.init or model.language_model
    text = _read(folder, "config.json")
    window, tokens = _window(text.get("text_config", text)), _added_tokens(folder)
    faults += _chat_faults(config)
    for name, stage in config.stages.items():
        if tokens:
            faults.append(template_fault(name, stage.template, tokens))
        if window and stage.max_length > window:
            key = f"stages.{name}.max_length"
            problem = f"{stage.max_length} exceeds the sliding window of {folder}, {window}: packed rows have no window"
            faults.append(Fault(key, problem, f"set {key}={window}, or choose a language model without a window"))
    return [fault for fault in faults if fault]


def _chat_faults(config: Config) -> list[Fault | None]:
    """What keeps the first stage from training by its start's own chat template; later ones start from our exports."""
    init = config.model.init
    name, stage = next(iter(config.stages.items()), ("", None))
    if stage is None or stage.template != "checkpoint" or not (init and Path(init).is_dir()):
        return []
    from transformers import AutoTokenizer

    from llava_train.family.onevision.chat import read_chat_template, stage_template

    try:
        tokenizer = AutoTokenizer.from_pretrained(init)
        tokenizer.chat_template = read_chat_template(init, tokenizer)
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


def _added_tokens(folder: str) -> set[str]:
    """Texts of the tokens that a tokenizer keeps whole; none where there is no tokenizer.json to tell."""
    listed = _read(folder, "tokenizer.json").get("added_tokens", [])
    named = _read(folder, "tokenizer_config.json").get("added_tokens_decoder", {}).values() if listed else ()
    return {token["content"] for token in (*listed, *named)}


def _read(folder: str, name: str) -> dict[str, Any]:
    """A JSON file of a folder; empty where there is none."""
    path = Path(folder, name)
    return json.loads(path.read_text(encoding="utf-8")) if folder and path.is_file() else {}
