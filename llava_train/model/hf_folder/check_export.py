"""The checks that an exported folder must pass before it takes its place, and what each of them found.

Enters: the written folder, the config as trained, the hash of each tensor as it came and a way to read it again.
Leaves: a `Check` for each, done or not, with the reason. One that fails raises RunError.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PretrainedConfig
from transformers.initialization import no_init_weights
from transformers.utils import logging

from llava_train.family.base import HFModel, MediumShape
from llava_train.family.registry import family_of
from llava_train.model.files.model_class import model_class
from llava_train.model.files.tensor_files import ALIGNMENT, DTYPES, Spec, bytes_of
from llava_train.model.files.tensor_names import older_module, older_name
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.hf_folder.weights import INDEX_FILE, WEIGHTS_FILE, expected_specs
from llava_train.records.tags import TAGS
from llava_train.shared.errors import RunError
from llava_train.shared.host_memory import available_memory, peak_memory
from llava_train.shared.json_files import read_json
from llava_train.text.placeholder_ids import index_of

Read = Callable[[str], torch.Tensor]  # a parameter by its own name, in the dtype of the export


QUESTION = "What is shown?"
COMPARED_TOKENS = 8  # the last of the prompt
MEMORY_FACTOR, MEMORY_SLACK = 1.3, 1 << 30  # host memory for a forward of the model, over its own bytes
MAX_SECONDS = 600  # that the comparison of logits may take, by estimate: other ranks wait meanwhile


@dataclass(frozen=True)
class Check:
    """told: what it found, or why it was not done."""

    name: str
    done: bool
    told: str
    figures: dict[str, float] = field(default_factory=dict)


class _NotDone(Exception):
    """A check that this machine cannot do."""


class _Refuted(Exception):
    """A check that failed."""


def prove(folder: Path, config: PretrainedConfig, hashes: Mapping[str, str], read: Read) -> list[Check]:
    """hashes: the parameters' own names -> sha256 of their bytes. Raises RunError where a check fails."""
    checks: dict[str, Callable[[], tuple[str, dict[str, float]]]] = {
        "tensor hashes": lambda: _hashes(folder, hashes),
        "keys in transformers 4.57": lambda: _older_keys(folder, config),
        "keys in transformers 5": lambda: _installed_keys(folder, config),
        "config": lambda: _config(folder, config),
        "logits": lambda: _logits(folder, config, read),
    }
    found = []
    for name, run in checks.items():
        began = time.monotonic()
        try:
            (told, figures), done = run(), True
        except _NotDone as reason:
            (told, figures), done = (str(reason), {}), False
        except _Refuted as error:
            raise RunError(
                f"the export is refused, and no folder was made; {name}: {error}\n"
                "    -> export it again from the run's folder; if this comes again, say so to the project"
            ) from error
        seconds = {"seconds": round(time.monotonic() - began, 3), "peak_host_bytes": peak_memory()}
        found.append(Check(name, done, told, figures | seconds))
    return found


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _places(folder: Path) -> dict[str, Path]:
    """The file of each key."""
    places: dict[str, Path] = {}
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), shard)
    return places


def _stored(folder: Path) -> dict[str, Spec]:
    """What the files hold, by their headers; as the index says, where there is one."""
    specs: dict[str, Spec] = {}
    places = _places(folder)
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as file:
            for key in (key for key, place in places.items() if place == shard):
                part = file.get_slice(key)
                specs[key] = Spec(DTYPES[part.get_dtype()], tuple(part.get_shape()))
    index = folder / INDEX_FILE
    expected = json.loads(index.read_text())["weight_map"] if index.exists() else dict.fromkeys(specs, WEIGHTS_FILE)
    if wrong := _differences({key: shard.name for key, shard in places.items()}, expected):
        raise _Refuted(f"the index does not fit the files: {wrong}")
    return specs


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Names that are missing, unexpected or other than expected; "" where there are none."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "different": sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name]),
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def _hashes(folder: Path, hashes: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Every tensor as the library reads it, under the name by which a model takes it."""
    own_names = {older_module(name): name for name in hashes}
    found: dict[str, str] = {}
    num_bytes = 0
    for key, shard in _places(folder).items():
        with safe_open(shard, framework="pt") as file:  # anew each time: what is mapped stays in memory until closed
            data = bytes_of(file.get_tensor(key))
            name = older_name(key)
            found[own_names.get(name, name)] = hashlib.sha256(data).hexdigest()
            num_bytes += len(data)
            del data
    if wrong := _differences(found, hashes):
        raise _Refuted(f"not what was handed over to be written: {wrong}")
    files = len(_shards(folder))
    told = f"{len(found):,} tensors, {num_bytes / 1e9:.2f} GB in {files} files: equal to what was handed over"
    return told, {"tensors": len(found), "bytes": num_bytes, "files": files}


def _older_keys(folder: Path, config: PretrainedConfig) -> tuple[str, dict[str, float]]:
    dtype = _dtype(folder)
    found = {older_name(key): spec for key, spec in _stored(folder).items()}
    expected = {older_module(name): spec for name, spec in expected_specs(config, dtype).items()}
    if wrong := _differences(found, expected):
        raise _Refuted(wrong)
    return f"{len(found):,}, by its renaming rules: none missing, unexpected or of another shape", {}


def _installed_keys(folder: Path, config: PretrainedConfig) -> tuple[str, dict[str, float]]:
    """By transformers' own loading, onto the meta device, which reads no weights."""
    with _quiet():
        model, info = model_class(config).from_pretrained(
            folder,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            **_LOADING,
        )
    wrong = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        raise _Refuted("; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names))
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {_dtype(folder)}:
        raise _Refuted(f"loads as {dtypes}, config.json says {_dtype(folder)}")
    count = len(list(model.parameters()))
    return f"{count:,}, by its own loading: none missing, unexpected or of another shape", {}


def refuse_support(folder: Path) -> None:
    """Raises RunError where the files beside the weights would be refused of an export; `folder` needs no weights."""
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if wrong := _wrong(_pairs(folder, config)):
        remedy = "mend that in the start's config.json or tokenizer files, and begin the stage anew"
        raise RunError(f"what this stage trains could not be exported: {wrong}\n    -> {remedy}")


def _config(folder: Path, config: PretrainedConfig) -> tuple[str, dict[str, float]]:
    """What both majors read from the files is one thing, and that of the run."""
    stored = {spec.dtype for spec in _stored(folder).values()}
    if wrong := _wrong(_pairs(folder, config) | {"dtype of the tensors": (stored, {_dtype(folder)})}):
        raise _Refuted(wrong)
    text: Any = config.text_config
    theta, rows = text.rope_parameters["rope_theta"], text.vocab_size
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return f"rope_theta {theta:g}, {rows:,} rows for {len(tokenizer):,} tokens, tags", {}


def _wrong(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    wrong = [f"{name} is {found}, not {expected}" for name, (found, expected) in pairs.items() if found != expected]
    return "; ".join(wrong)


def _pairs(folder: Path, config: PretrainedConfig) -> dict[str, tuple[Any, Any]]:
    """What is found in the files, and what is expected."""
    content = read_json(folder / "config.json")
    text = content["text_config"]
    trained: Any = config.text_config
    rope, trained_rope = text["rope_parameters"], dict(trained.rope_parameters)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tags = tokenizer.get_added_vocab()
    ends = read_json(folder / "generation_config.json")["eos_token_id"]
    is_default = rope["rope_type"] == "default"
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "rope_theta": (text.get("rope_theta"), trained_rope["rope_theta"]),
        "rope_parameters": (rope, trained_rope),
        "rope_scaling": (text.get("rope_scaling"), None if is_default else scaling),
        "tie_word_embeddings": (content["tie_word_embeddings"], config.tie_word_embeddings),
        "tie_word_embeddings of the text": (text["tie_word_embeddings"], config.tie_word_embeddings),
        **{name: (content[name], tags.get(tag)) for tag in TAGS.values() if (name := index_of(tag)) in content},
        "vocab_size": (text["vocab_size"], trained.vocab_size),
        "room for the tokenizer's tokens": (text["vocab_size"] >= len(tokenizer), True),
        "end token among those of generation_config.json": (tokenizer.eos_token_id in ends, True),
        "chat template": (bool(tokenizer.chat_template), True),
    }


def _dtype(folder: Path) -> torch.dtype:
    return getattr(torch, read_json(folder / "config.json")["dtype"])


def _logits(folder: Path, config: PretrainedConfig, read: Read) -> tuple[str, dict[str, float]]:
    """Of the model made of the run's own tensors, and of the one that transformers loads from the folder."""
    specs = _stored(folder).values()
    needed = sum(spec.num_bytes for spec in specs) * MEMORY_FACTOR + MEMORY_SLACK
    left = available_memory()
    if left < needed:
        raise _NotDone(f"needs {needed / 1e9:.1f} GB of host memory, {left / 1e9:.1f} GB are left")
    inputs = _prompt(folder)
    with _all_cores():
        operations = 2 * 2 * inputs["input_ids"].numel() * sum(math.prod(spec.shape) for spec in specs)
        seconds = operations / _speed(_dtype(folder))
        if seconds > MAX_SECONDS:
            raise _NotDone(f"would take about {seconds / 60:,.0f} minutes on this machine's processor")
        ours = _forward(lambda: _assembled(config, _dtype(folder), read), inputs)
        theirs = _forward(lambda: _loaded(folder, config), inputs)
    if bytes_of(ours) != bytes_of(theirs):
        raise _Refuted(f"differ by up to {(ours - theirs).abs().max().item():.3g} from those of the run's own tensors")
    finite = "" if ours.isfinite().all() else ", not all finite"
    tokens = inputs["input_ids"].shape[1]
    told = f"equal bit for bit to those of the run's own tensors, {tokens:,} tokens with an image{finite}"
    return told, {"max_difference": 0.0}


def _speed(dtype: torch.dtype) -> float:
    """Operations a second of a product like those of a layer; the better of two, since the first one warms up."""
    rows, weight = torch.ones(64, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        rows @ weight.T
        seconds.append(time.perf_counter() - began)
    return 2 * rows.numel() * len(weight) / min(seconds)


@contextmanager
def _all_cores() -> Iterator[None]:
    """Launchers leave one core to each rank; the others wait while one of them exports."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_LOADING: dict[str, Any] = {"dtype": "auto", "use_safetensors": True, "attn_implementation": "sdpa"}


def _loaded(folder: Path, config: PretrainedConfig) -> HFModel:
    with _quiet():
        return model_class(config).from_pretrained(folder, trust_remote_code=False, **_LOADING)


def _assembled(config: PretrainedConfig, dtype: torch.dtype, read: Read) -> HFModel:
    """The model of this config with each parameter as `read` gives it; nothing of the folder."""
    with no_init_weights(), init_empty_weights():
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    names = expected_specs(config, dtype)
    model.load_state_dict({name: read(name) for name in names}, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, left
    return model


def _forward(make: Callable[[], HFModel], inputs: dict[str, Any]) -> torch.Tensor:
    """fp32 logits; the model is gone from memory afterwards."""
    model: Any = make().eval()
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:  # kernels may round otherwise where a weight lies across it
            parameter.data = parameter.data.clone()
    pixels = inputs["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        kept = {"use_cache": False, "logits_to_keep": COMPARED_TOKENS}
        logits = model(**(inputs | {"pixel_values": pixels}), **kept).logits.float()
    del model
    gc.collect()
    return logits


def _prompt(folder: Path) -> dict[str, Any]:
    """A small image of coloured stripes and a question, by the folder's own tokenizer and image processor."""
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    geometry = checkpoint_geometry(config)
    side = geometry.tile_size
    stripes = np.add.outer(np.arange(side), np.arange(side))[..., None] * np.array([3, 5, 7])
    picture = Image.fromarray((stripes % 256).astype(np.uint8))
    processor_class: Any = getattr(transformers, family_of(config).image_processor)
    processor = processor_class.from_pretrained(folder, trust_remote_code=False)
    pixels = processor(picture, return_tensors="pt")
    image = [config.image_token_index] * geometry.layouts([MediumShape("image", side, side)])[0].num_tokens
    text = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(QUESTION)["input_ids"]
    return {"input_ids": torch.tensor([[*image, *text]]), **pixels}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings; what they would say is checked here."""
    shows_progress, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()
