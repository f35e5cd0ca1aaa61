"""A checkpoint folder in Hugging Face form that transformers 4.57 and 5.x load alike, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

from llava_train.config.schema import VideoConfig
from llava_train.family.onevision.geometry import Geometry
from llava_train.family.onevision.processor import aspect_ratio, processor_files
from llava_train.family.onevision.template import TagPolicy, TemplateName, chat_template
from llava_train.model.card import Card, render_card

MAX_SHARD_BYTES = 5_000_000_000
PREPARATION_FILE = "llava_train.json"
RELEASED: dict[str, Any] = {  # the released LLaVA-OneVision checkpoints: finetune_ov.sh of LLaVA-NeXT, commit b42941c
    "mode": "anyres",
    "template": "qwen",
    "tag_policy": "front",
    "video": {"fps": 1.0, "max_frames": 32},
}

# module names of transformers 5 -> names in the file; 4.57 needs `vision_model.`, which 5.x reads as well
RENAMED = (
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


@dataclass(frozen=True)
class Preparation:
    """How samples were prepared for a checkpoint: what another program must know to ask it as it was trained."""

    geometry: Geometry
    template: TemplateName
    tag_policy: TagPolicy
    video: VideoConfig


def export_name(name: str) -> str:
    """The name in the file of a parameter of `LlavaOnevisionForConditionalGeneration` as transformers 5 names it."""
    for prefix, replacement in RENAMED:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    raise ValueError(f"no place in a LlavaOnevision checkpoint for {name}")


def write_checkpoint(
    out: Path,
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    config: LlavaOnevisionConfig,
    tokenizer: PreTrainedTokenizerBase,
    preparation: Preparation,
    card: Card,
) -> None:
    """Writes the folder `out`, replacing one that is there.

    named_tensors: all parameters of the model in its own names, on CPU, one after another; about one shard is held in
    memory. Raises ValueError, and leaves `out` as it was, where they are not exactly those of `config`.
    """
    with whole_folder(out) as folder:
        dtype = _write_weights(folder, named_tensors, config)
        geometry = preparation.geometry
        is_square = geometry.mode == "square"  # transformers has no such mode: its files keep the grid of the config
        geometry = checkpoint_geometry(config) if is_square else geometry
        _write_json(folder / "config.json", _config(config, geometry, dtype))
        _write_json(folder / "generation_config.json", _generation_config(tokenizer))
        _write_tokenizer(folder, tokenizer, preparation.template)
        chat = chat_template(preparation.template, preparation.tag_policy)
        (folder / "chat_template.jinja").write_text(chat, encoding="utf-8")
        for name, content in processor_files(geometry).items():
            _write_json(folder / name, content)
        _write_json(folder / PREPARATION_FILE, _notes(preparation))
        (folder / "README.md").write_text(render_card(card, is_square), encoding="utf-8")


def read_preparation(folder: str, config: LlavaOnevisionConfig) -> Preparation:
    """How to prepare samples for a checkpoint: from its notes, or as for the released ones where it has none."""
    path = Path(folder) / PREPARATION_FILE
    notes = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    notes = RELEASED | notes
    geometry = checkpoint_geometry(config, notes["mode"])
    return Preparation(geometry, notes["template"], notes["tag_policy"], VideoConfig(**notes["video"]))


def _notes(preparation: Preparation) -> dict[str, Any]:
    return {
        "mode": preparation.geometry.mode,
        "template": preparation.template,
        "tag_policy": preparation.tag_policy,
        "video": asdict(preparation.video),
    }


def checkpoint_geometry(config: LlavaOnevisionConfig, mode: Literal["square", "anyres"] = "anyres") -> Geometry:
    """The geometry that transformers applies to a checkpoint with this config."""
    vision = cast(Any, config.vision_config)
    size = vision.image_size
    pinpoints = config.image_grid_pinpoints or []
    grid = tuple((height // size, width // size) for height, width in pinpoints)
    max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    return Geometry(size, vision.patch_size, mode, grid, max_tiles)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write to, which is flushed and takes its place at the end; removed on an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    writing, replaced = (out.with_name(f".{out.name}.{word}") for word in ("writing", "replaced"))
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    try:
        yield writing
    except BaseException:
        shutil.rmtree(writing)
        raise
    flush_tree(writing)
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    writing.rename(out)
    flush(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def flush_tree(folder: Path) -> None:
    """Forces every file below `folder`, and the folders' own entries, to disk."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _expected_shapes(config: LlavaOnevisionConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    return {name: p.shape for name, p in model.named_parameters()}  # tied weights appear once


def _write_weights(
    folder: Path, named_tensors: Iterable[tuple[str, torch.Tensor]], config: LlavaOnevisionConfig
) -> torch.dtype:
    """Shards of at most 5 GB and their index. Returns the dtype, one for all tensors."""
    expected = _expected_shapes(config)
    shards: list[dict[str, torch.Tensor]] = [{}]
    written: list[list[str]] = []
    shapes: dict[str, torch.Size] = {}
    dtypes, total, held = set(), 0, 0

    def close_shard() -> None:
        path = folder / f"shard-{len(written)}"
        save_file(shards[-1], path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it readable by its owner alone
        written.append(list(shards[-1]))
        shards[-1] = {}

    for name, tensor in named_tensors:
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and held + size > MAX_SHARD_BYTES:
            close_shard()
            held = 0
        shards[-1][export_name(name)] = tensor.detach().contiguous()
        shapes[name] = tensor.shape
        dtypes.add(tensor.dtype)
        total, held = total + size, held + size
    close_shard()
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong or len(dtypes) != 1:
        raise ValueError(f"not the weights of this config: {', '.join(wrong) or f'dtypes {dtypes}'}")
    _name_shards(folder, written, total)
    return dtypes.pop()


def _name_shards(folder: Path, written: list[list[str]], total: int) -> None:
    if len(written) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(written):
        file = f"model-{i + 1:05d}-of-{len(written):05d}.safetensors"
        (folder / f"shard-{i}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _config(config: LlavaOnevisionConfig, geometry: Geometry, dtype: torch.dtype) -> dict[str, Any]:
    """The config with this geometry. `rope_theta` stands beside `rope_parameters`: 4.57 reads only the former."""
    content = config.to_dict()
    text = content["text_config"]
    text["rope_theta"] = text["rope_parameters"]["rope_theta"]
    content["architectures"] = ["LlavaOnevisionForConditionalGeneration"]
    content["dtype"] = text["dtype"] = content["vision_config"]["dtype"] = str(dtype).removeprefix("torch.")
    content["image_grid_pinpoints"] = geometry.pinpoints()
    content["vision_aspect_ratio"] = aspect_ratio(geometry)
    return content


def _generation_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Qwen2 ends at <|im_end|> and its padding, <|endoftext|>; Vicuna, padded with <unk> or nothing, at </s> alone."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ends = [end] if pad in (end, None, tokenizer.unk_token_id) else [end, pad]
    return {"eos_token_id": ends, "pad_token_id": end if pad is None else pad}


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, template: TemplateName) -> None:
    """Tokenizer files; transformers 5 writes a list and a class name on which 4.57 fails, and omits what it returns."""
    if template == "vicuna":  # its chat template writes <s>, and a second one would come before it
        tokenizer = deepcopy(tokenizer)
        cast(Any, tokenizer).add_bos_token = False
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only", "chat_template"):
        content.pop(key, None)
    if "extra_special_tokens" in content:
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    if content["tokenizer_class"] == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if hasattr(tokenizer, "legacy"):  # Llama's: left out, these would come back as the defaults of each major
        content |= {"legacy": tokenizer.legacy, "add_bos_token": cast(Any, tokenizer).add_bos_token}
    content["model_input_names"] = ["input_ids", "attention_mask"]  # that class would add token_type_ids
    _write_json(path, content)
