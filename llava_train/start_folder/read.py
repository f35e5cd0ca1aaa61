"""A checkpoint folder as a `Start`: what it holds and every fault of it.

Enters: a folder. Leaves: a `Start`, from JSON files and the headers of safetensors alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_train.shared.errors import ConfigError, Fault, shortened
from llava_train.start_folder.files import (
    Stored,
    json_fault,
    object_or_empty,
    pointer_fault,
    read_header,
    read_or_empty,
)
from llava_train.start_folder.find import ADAPTER_CONFIG, INDEX, WEIGHTS, weight_files

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
JSON_FILES = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "processor_config.json", "chat_template.json", "llava_train.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json"),
)
FLOATS = ("F64", "F32", "BF16", "F16")  # types of plain weights; I64 and BOOL are those of buffers
PLAIN = (*FLOATS, "I64", "BOOL")
INNER = ("text_config", "vision_config")

_QUANTISED_KEY = re.compile(  # scales and states of bitsandbytes, GPTQ, AWQ, FP8 and compressed-tensors
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+|SCB|qweight|qzeros|g_idx|weight_packed"
    r"|weight_scale|weight_scale_inv)$"
)
_EMBEDDING = re.compile(r"(^|\.)embed_tokens\.weight$")
_ELSEWHERE = {  # what to do where a setting leads to no folder
    "model.init": "run the recipe that writes this folder first, or start elsewhere: model.init=DIR_OR_HUB_NAME"
}


@dataclass(frozen=True)
class Start:
    """name: as `key` of the config gives it. files: of its weights, in order; none where they are not here yet."""

    key: str
    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    tensors: dict[str, Stored] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        """Of the token embedding."""
        shapes = (stored.shape for name, stored in self.tensors.items() if _EMBEDDING.search(name))
        return next((shape[0] for shape in shapes if shape), None)

    @cached_property
    def _listed_tokens(self) -> tuple[int, dict[str, int]]:
        """By tokenizer.json: how many ids a vocabulary takes, and the ids of the tokens that are kept whole."""
        content = read_or_empty(self.folder / "tokenizer.json")
        vocabulary = object_or_empty(content.get("model")).get("vocab") or {}
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        size = max((i for i in ids if isinstance(i, int)), default=-1) + 1
        added = content.get("added_tokens") or []
        tokens = [(token, token.get("id", -1)) for token in map(object_or_empty, added)]
        if content:
            named = object_or_empty(read_or_empty(self.folder / "tokenizer_config.json").get("added_tokens_decoder"))
            tokens += [(object_or_empty(token), int(i)) for i, token in named.items() if i.isdecimal()]
        return size, {token["content"]: i for token, i in tokens if "content" in token}

    def token_id(self, token: str) -> int | None:
        """Of a token that the tokenizer keeps whole, as far as its JSON files tell."""
        return self._listed_tokens[1].get(token)

    @property
    def added_tokens(self) -> set[str]:
        """Texts of the tokens that a tokenizer keeps whole; none where there is no tokenizer.json to tell."""
        return set(self._listed_tokens[1])

    def num_tokens(self, besides: Collection[str] = ()) -> int:
        """Ids that the tokenizer may give, those of `besides` left out, as far as its JSON files tell."""
        size, added = self._listed_tokens
        added = {
            t: i for t, i in read_or_empty(self.folder / "added_tokens.json").items() if isinstance(i, int)
        } | added
        return max([size - 1, *(i for token, i in added.items() if token not in besides)]) + 1


def read_start(key: str, name: str, folder: Path, weights: bool = True) -> tuple[Start, list[Fault]]:
    """What lies in the folder of the start that `key` names, and what is wrong with it, all faults at once.

    Its type of model is for the caller to judge. weights: they are judged too, and then must be there.
    """
    start = Start(key, name, folder)
    if not folder.is_dir():
        return start, [_no_folder(key, name, folder)]
    is_model = (folder / "config.json").is_file()
    faults = _adapter_faults(key, name, folder, is_model)
    if not is_model:
        problem = f"{name} has no config.json, so it is no checkpoint"
        return start, faults or [Fault(key, problem, "name a folder that from_pretrained of transformers takes")]
    faults += [fault for file in ("config.json", *JSON_FILES) if (fault := json_fault(key, folder / file))]
    config = read_or_empty(folder / "config.json")
    if not (faults or config):
        faults.append(Fault(key, f"{folder / 'config.json'} holds an empty object", "download or copy it again"))
    for part in [part for part in INNER if not isinstance(config.get(part, {}), dict)]:
        if config.pop(part) is not None:  # null stands for what transformers takes by itself
            faults.append(Fault(key, f"{folder / 'config.json'}: its {part} is no object", "download or copy it again"))
    if key != "model.vision_tower":
        faults += _tokenizer_faults(key, name, folder)
    if not weights:
        return Start(key, name, folder, config), faults + _quantised_faults(key, name, config, {})
    files = tuple(weight_files(folder))
    tensors: dict[str, Stored] = {}
    faults += _weight_faults(key, name, folder, config, files)
    for path in files:
        if path.is_file():
            try:
                tensors |= read_header(key, path)
            except ConfigError as error:
                faults += error.faults
    faults += _quantised_faults(key, name, config, tensors)
    return Start(key, name, folder, config, files, tensors), faults


def _no_folder(key: str, name: str, folder: Path) -> Fault:
    if folder.is_file():
        return Fault(key, f"{name} is a file, not a folder", f"name the folder that it lies in: {key}={folder.parent}")
    if "://" in name:
        remedy = f"name a model on the hub by ORG/NAME alone: {key}={'/'.join(name.split('/')[-2:])}"
        return Fault(key, f"{name} is an address, not a folder", remedy)
    return Fault(key, f"no folder {name}", _ELSEWHERE.get(key, f"put it there, or set {key}=DIR_OR_HUB_NAME"))


def _adapter_faults(key: str, name: str, folder: Path, is_model: bool) -> list[Fault]:
    """Beside a model, transformers would load the adapter's own base in place of that model."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return []
    base = read_or_empty(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "BASE"
    if is_model:
        problem = f"{name} holds an adapter ({ADAPTER_CONFIG}) beside a model"
        return [Fault(key, problem, f"move {ADAPTER_CONFIG} and adapter_model.* to a folder of their own")]
    merged = "export its run with merge=true; generate and evaluate take it as adapter=DIR"
    return [Fault(key, f"{name} is an adapter, no model", f"start from its base: {key}={base}. To merge it, {merged}")]


def _tokenizer_faults(key: str, name: str, folder: Path) -> list[Fault]:
    there = [folder / file for file in TOKENIZERS if (folder / file).is_file()]
    if not there:
        remedy = "copy the tokenizer files of its language model there"
        return [Fault(key, f"{name} has no tokenizer ({', '.join(TOKENIZERS[:3])})", remedy)]
    texts = sorted(path for ending in ("*.model", "*.txt", "*.jinja") for path in folder.glob(ending) if path.is_file())
    faults = [fault for path in texts if (fault := pointer_fault(key, path))]
    path = folder / "tokenizer.json"
    added = (content := read_or_empty(path)).get("added_tokens") or []
    has_form = content and isinstance(content.get("model", {}), dict) and isinstance(added, list)
    if path.is_file() and not json_fault(key, path) and not (has_form and all(isinstance(t, dict) for t in added)):
        faults.append(Fault(key, f"{path} is JSON, but no tokenizer", "download or copy it again"))
    return faults


def _weight_faults(key: str, name: str, folder: Path, config: dict[str, Any], files: tuple[Path, ...]) -> list[Fault]:
    """No weights that are read, files of the index that are not there, or a config that names files of its own."""
    named = [part["transformers_weights"] for part in (config, *_parts(config)) if part.get("transformers_weights")]
    if named:
        problem = f"{name}: config.json names its weights itself (transformers_weights: {named[0]})"
        return [Fault(key, problem, f"rename them to {WEIGHTS} or index them in {INDEX}, and remove that entry")]
    if outside := [path for path in files if path.parent != folder]:
        problem = f"{folder / INDEX} names {outside[0]}, which does not lie beside it"
        return [Fault(key, problem, f"put all weights into {name} itself, and name them in {INDEX} without a folder")]
    if missing := [path.name for path in files if not path.is_file()]:
        problem = f"{name} misses {shortened(missing, 5)}, which {INDEX} names"
        return [Fault(key, problem, "download or copy the whole folder again")]
    if files:
        return []
    if (folder / INDEX).is_file():
        return [json_fault(key, folder / INDEX) or Fault(key, f"{folder / INDEX} names no files", "download it again")]
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
    if any(path.startswith("pytorch_model") for path in pickles):
        problem = f"{name} holds pickled weights alone ({pickles[0]}), which are not read: a pickle can run code"
        remedy = "take the checkpoint's safetensors, or load it with transformers and save_pretrained it"
        return [Fault(key, problem, remedy)]
    others = [*pickles, *sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".gguf"))]
    there = f"; {', '.join(others[:3])} there is no part of a checkpoint by itself" if others else ""
    problem = f"{name} has no weights: neither {WEIGHTS} nor {INDEX}{there}"
    return [Fault(key, problem, "download or copy the whole folder again")]


def _quantised_faults(key: str, name: str, config: dict[str, Any], tensors: Mapping[str, Stored]) -> list[Fault]:
    said = [
        part[k] for part in (config, *_parts(config)) for k in ("quantization_config", "quantization") if part.get(k)
    ]
    kinds = sorted({stored.dtype for stored in tensors.values() if stored.dtype not in PLAIN})
    stored = bool(kinds) or any(_QUANTISED_KEY.search(tensor) for tensor in tensors)
    if not (said or stored):
        return []
    method = said[0].get("quant_method", "") if said and isinstance(said[0], dict) else ""
    told = f"{name} is quantised" + (f" ({method})" if method else "")
    if said and tensors and not stored:
        floats = ", ".join(sorted({tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS}))
        problem = f"{name}: config.json says quantization_config ({method}), and its weights are plain {floats}"
        return [Fault(key, problem, f"remove quantization_config from {name}/config.json")]
    if kinds:
        told += f": it holds weights of type {', '.join(kinds)}"
    remedy = "start from the checkpoint that was quantised; load_in=4bit or 8bit quantises it while it is read"
    return [Fault(key, told, remedy)]


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for k in INNER if isinstance(part := config.get(k), dict)]
