"""Folders that no run can start from, one of each kind, made of a sound one; and what is said of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 502208\n"
LAYER = "language_model.model.layers.0.mlp.down_proj"


class Row(NamedTuple):
    """spoil: makes the folder unfit. told: words of the problem. remedy: words of what to do."""

    spoil: Callable[[Path], None]
    told: str
    remedy: str


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def set_config(**changes) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def set_inner(part: str, **changes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        inner = json.loads((folder / "config.json").read_text())[part]
        edit(folder / "config.json", **{part: inner | changes})

    return spoil


def store(changes: dict[str, np.ndarray], **config) -> Callable[[Path], None]:
    """Other tensors in place of a layer's weight, and what the config says of them."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        del tensors[f"{LAYER}.weight"]
        save_file(
            tensors | {LAYER + name: value for name, value in changes.items()}, folder / WEIGHTS, {"format": "pt"}
        )
        if config:
            set_config(**config)(folder)

    return spoil


def write_adapter(folder: Path) -> None:
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="org/base", r=4)
    save_file({"a": np.zeros(2, np.float32)}, folder / "adapter_model.safetensors")


def leave_adapter_alone(folder: Path) -> None:
    write_adapter(folder)
    (folder / "config.json").unlink()
    (folder / WEIGHTS).unlink()


def shard(folder: Path) -> None:
    """Its weights in two files and an index, as published."""
    tensors = load_file(folder / WEIGHTS)
    names, index = sorted(tensors), dict[str, str]()
    half = len(names) // 2
    for i, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    edit(folder / INDEX, metadata={}, weight_map=index)
    (folder / WEIGHTS).unlink()


def drop(*names: str, first: Callable[[Path], None] = lambda _: None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        first(folder)
        for name in names:
            (folder / name).unlink()

    return spoil


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def cut(folder: Path, share: float = 0.5) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])


def lengthen(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 8)


def rename_weights(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def index(folder: Path, name: str | None) -> None:
    """The index names this file for one more tensor."""
    names = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=names | {"z": name})


def leave_gap(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def add_tokens(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    first = max(token["id"] for token in content["added_tokens"]) + 1
    template = content["added_tokens"][0]
    content["added_tokens"] += [template | {"id": first + i, "content": f"<loc{i}>"} for i in range(80)]
    (folder / "tokenizer.json").write_text(json.dumps(content))


BITS = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
U8, I32, F32 = np.zeros((8, 1), np.uint8), np.zeros((2, 2), np.int32), np.zeros(4, np.float32)
STARTS: dict[str, Row] = {
    "adapter beside": Row(
        write_adapter, "holds an adapter (adapter_config.json) beside a model", "move adapter_config"
    ),
    "adapter alone": Row(leave_adapter_alone, "is an adapter, no model", "model.init=org/base"),
    "bitsandbytes": Row(
        store({".weight": U8, ".weight.absmax": F32}, **BITS), "quantised (bitsandbytes): it holds", "load_in"
    ),
    "bitsandbytes kept as floats": Row(
        store({".weight": F32, ".weight.absmax": F32}, **BITS), "is quantised (bits", "load_in"
    ),
    "gptq": Row(
        store({".qweight": I32, ".scales": F32}, quantization_config={"quant_method": "gptq"}),
        "quantised (gptq)",
        "load_in",
    ),
    "awq, not said": Row(
        store({".qweight": I32, ".qzeros": I32}), "is quantised: it holds weights of type I32", "load_in"
    ),
    "quantised by its config alone": Row(
        set_config(**BITS), "and its weights are plain F32", "remove quantization_config"
    ),
    "quantised by its text_config alone": Row(
        set_inner("text_config", **BITS), "its weights are plain", "remove quant"
    ),
    "more tokens than rows": Row(add_tokens, "tokens, its embedding 320 rows", "resize_token_embeddings(341)"),
    "tags beyond the rows": Row(
        set_config(image_token_index=400), "has 401 tokens, its embedding 320 rows", "tokenizer"
    ),
    "another type, with code": Row(
        set_config(model_type="llavaonevision1_5", auto_map={"AutoConfig": "configuration_x.XConfig"}),
        "holds a llavaonevision1_5 model, not llava_onevision",
        "LlavaOnevision checkpoint",
    ),
    "a language model": Row(
        set_config(model_type="qwen2"), "a qwen2 model, not llava_onevision", "model.language_model="
    ),
    "of the original trainer": Row(
        set_config(model_type="llava_qwen", mm_vision_tower="s"), "a llava_qwen model", "convert"
    ),
    "another text model": Row(set_inner("text_config", model_type="mixtral"), "of type mixtral", "qwen2, qwen3"),
    "another tower": Row(set_inner("vision_config", model_type="clip_vision_model"), "clip_vision_model", "siglip"),
    "several feature layers": Row(
        set_config(vision_feature_layer=[-2, -1]), "vision_feature_layer [-2, -1]", "with one"
    ),
    "another aspect ratio": Row(set_config(vision_aspect_ratio="anyres"), "vision_aspect_ratio anyres", "anyres_max_N"),
    "git lfs pointer": Row(write(WEIGHTS, POINTER), "is a Git LFS pointer", "git lfs pull"),
    "git lfs processor": Row(
        write("preprocessor_config.json", POINTER), "preprocessor_config.json is a Git LFS pointer", "git lfs pull"
    ),
    "git lfs chat template": Row(
        write("chat_template.jinja", POINTER), "chat_template.jinja is a Git LFS pointer", "git lfs pull"
    ),
    "git lfs merges": Row(write("merges.txt", POINTER), "merges.txt is a Git LFS pointer", "git lfs pull"),
    "git lfs tokenizer": Row(write("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer", "git lfs pull"),
    "cut off": Row(cut, "is cut off", "download or copy it again"),
    "cut off in its header": Row(lambda folder: cut(folder, 0.001), "is cut off", "download or copy it again"),
    "empty file": Row(write(WEIGHTS, ""), "is cut off: it has 0 bytes", "download or copy it again"),
    "too long": Row(lengthen, "something behind its end", "download or copy it again"),
    "a pickle by name": Row(write(WEIGHTS, "PK\3\4 a zip of torch"), "is no safetensors file", "download"),
    "misses a shard": Row(
        drop("model-00002-of-00002.safetensors", first=shard), "misses model-00002-of-00002", "whole folder"
    ),
    "shards without index": Row(drop(INDEX, first=shard), "neither model.safetensors nor", "whole folder"),
    "shards in a folder": Row(
        lambda folder: (shard(folder), index(folder, "sub/model.safetensors")),
        "which does not lie beside it",
        "put all",
    ),
    "index of no names": Row(lambda folder: (shard(folder), index(folder, None)), "index.json names no files", "again"),
    "broken index": Row(lambda folder: (shard(folder), write(INDEX, "{")(folder)), "index.json is no JSON", "again"),
    "pickled alone": Row(
        rename_weights("pytorch_model.bin"), "pickled weights alone (pytorch_model.bin)", "safetensors"
    ),
    "other names": Row(
        rename_weights("consolidated.safetensors"), "consolidated.safetensors there is no", "whole folder"
    ),
    "weights by the config": Row(
        set_config(transformers_weights="other.safetensors"), "transformers_weights: other", "rename"
    ),
    "no weights": Row(drop(WEIGHTS), "has no weights", "whole folder"),
    "no config": Row(drop("config.json"), "has no config.json", "from_pretrained"),
    "empty config": Row(write("config.json", "{}"), "config.json holds an empty object", "again"),
    "a text for a config": Row(set_config(text_config="qwen2"), "its text_config is no object", "again"),
    "tag without id": Row(set_config(image_token_index=None), "image_token_index = None", "write image_token_index ="),
    "tag of another id": Row(set_config(video_token_index=-200), "video_token_index = -200", "write video_token_index"),
    "no tokenizer in its file": Row(write("tokenizer.json", "{}"), "is JSON, but no tokenizer", "again"),
    "a gap between tensors": Row(leave_gap, "is no safetensors file", "download or copy it again"),
    "broken config": Row(write("config.json", "{"), "config.json is no JSON", "again"),
    "no tokenizer": Row(drop("tokenizer.json"), "has no tokenizer", "tokenizer files"),
}
PARTS: dict[str, tuple[str, Row]] = {  # of the language model's folder or the tower's
    f"{part}: {name}": (part, STARTS[name])
    for part in ("language_model", "vision_tower")
    for name in (
        "adapter beside",
        "quantised by its config alone",
        "git lfs pointer",
        "cut off",
        "misses a shard",
        "pickled alone",
        "no weights",
        "no config",
    )
} | {f"language_model: {name}": ("language_model", STARTS[name]) for name in ("no tokenizer", "more tokens than rows")}
