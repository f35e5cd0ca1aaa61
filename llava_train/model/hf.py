"""A checkpoint folder in Hugging Face form that transformers 4.57 and 5.x load alike, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

from llava_train.config.schema import StageConfig, VideoConfig
from llava_train.family.onevision.geometry import Geometry, make_geometry
from llava_train.family.onevision.processor import aspect_ratio, processor_files
from llava_train.family.onevision.start import open_start
from llava_train.model.card import Card, card_record, render_card
from llava_train.model.tensorfile import Spec, bytes_of, write_tensors
from llava_train.shared.json_files import read_json, to_json
from llava_train.text.base import TagPolicy, TemplateName
from llava_train.text.chat_template import chat_template
from llava_train.text.checkpoint_template import stage_template
from llava_train.text.named_templates import chat_name

MAX_SHARD_BYTES = 5_000_000_000
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
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

    named_tensors: all parameters of the model in its own names, on CPU; one is held in memory at a time where they come
    in the model's order. Raises ValueError, and leaves `out` as it was, where they are not exactly those of `config`.
    """
    dtype, tensors = _peek(iter(named_tensors))
    specs = expected_specs(config, dtype)
    with whole_folder(out) as folder:
        write_weights(folder, specs, _in_order(specs, tensors, config.tie_word_embeddings))
        write_support(folder, config, tokenizer, preparation, dtype)
        write_card(folder, card, preparation)


def write_support(
    folder: Path,
    config: LlavaOnevisionConfig,
    tokenizer: PreTrainedTokenizerBase,
    preparation: Preparation,
    dtype: torch.dtype,
) -> None:
    """All files of a checkpoint of that dtype but its weights and its card.

    Where it was trained by template checkpoint, the chat template is the one that the tokenizer carries, as it stands.
    """
    geometry = preparation.geometry
    if geometry.mode == "square":  # transformers has no such mode: its files keep the grid of the config
        geometry = checkpoint_geometry(config)
    _write_json(folder / "config.json", _config(config, geometry, dtype))
    _write_json(folder / "generation_config.json", _generation_config(tokenizer, preparation))
    _write_tokenizer(folder, tokenizer, preparation.template)
    if preparation.template == "checkpoint":
        chat = cast(str, tokenizer.chat_template)
    else:
        chat = chat_template(preparation.template, preparation.tag_policy)
    (folder / "chat_template.jinja").write_bytes(chat.encode())
    for name, content in processor_files(geometry).items():
        _write_json(folder / name, content)
    _write_json(folder / PREPARATION_FILE, _notes(preparation))


def write_card(folder: Path, card: Card, preparation: Preparation, is_adapter: bool = False) -> None:
    """README.md, and in the notes what a later stage must know to tell the whole recipe."""
    notes = folder / PREPARATION_FILE
    _write_json(notes, read_json(notes) | card_record(card))
    text = render_card(card, preparation.geometry.mode == "square", is_adapter)
    (folder / "README.md").write_text(text, encoding="utf-8")


def read_preparation(folder: str, config: LlavaOnevisionConfig, adapter: str = "") -> Preparation:
    """How to prepare samples for a checkpoint: from its notes, or as for the released ones where it has none.

    What the folder of an adapter on it notes, and the grid of the processor that lies there, go before its base's.
    """
    notes = RELEASED | _read_if_there(Path(folder) / PREPARATION_FILE)
    if adapter:
        notes |= _read_if_there(Path(adapter) / PREPARATION_FILE)
        config = _with_processor_of(Path(adapter), config)
    geometry = checkpoint_geometry(config, notes["mode"])
    return Preparation(geometry, notes["template"], notes["tag_policy"], VideoConfig(**notes["video"]))


def _with_processor_of(folder: Path, config: LlavaOnevisionConfig) -> LlavaOnevisionConfig:
    """The config with the grid and tiles of the processor files in the folder, as far as they are there."""
    processor = _read_if_there(folder / "processor_config.json")
    images = _read_if_there(folder / "preprocessor_config.json") or processor.get("image_processor", {})  # 4.57, or 5.x
    config = deepcopy(config)
    config.image_grid_pinpoints = images.get("image_grid_pinpoints", config.image_grid_pinpoints)
    config.vision_aspect_ratio = processor.get("vision_aspect_ratio", config.vision_aspect_ratio)
    return config


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


def stage_geometries(
    stages: Mapping[str, StageConfig], init: str, tile_size: int, patch_size: int
) -> dict[str, Geometry]:
    """By stage, of a run that starts from the checkpoint `init`, or from parts where it is empty; no weights are read.

    tile_size, patch_size: of the vision tower, in pixels.
    """
    geometries: dict[str, Geometry] = {}
    for name, stage in stages.items():
        if stage.image.mode != "checkpoint":
            geometries[name] = make_geometry(tile_size, patch_size, stage.image)
        elif geometries:
            geometries[name] = list(geometries.values())[-1]
        else:
            folder = open_start("model.init", init, weights=False).folder
            config = LlavaOnevisionConfig.from_pretrained(folder, trust_remote_code=False)
            geometries[name] = read_preparation(str(folder), config).geometry
    return geometries


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


def _read_if_there(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    return read_json(path) if path.is_file() else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(to_json(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def expected_specs(config: LlavaOnevisionConfig, dtype: torch.dtype) -> dict[str, Spec]:
    """Every parameter of the model, in its own names and order; tied ones appear once."""
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    return {name: Spec(dtype, tuple(parameter.shape)) for name, parameter in model.named_parameters()}


def write_weights(
    folder: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, torch.Tensor]]
) -> dict[str, str]:
    """Shards of at most 5 GB and their index, one tensor in memory at a time.

    specs: the model's parameters in its own names. tensors: these, in the same order. Returns the sha256 of each
    one's bytes as they came, under the same names. Raises ValueError where tensors differ from specs.
    """
    hashes: dict[str, str] = {}

    def hashed(count: int) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in islice(source, count):
            hashes[name] = hashlib.sha256(bytes_of(tensor)).hexdigest()
            yield export_name(name), tensor

    source = iter(tensors)
    shards = _plan_shards(specs)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        due = {export_name(name): specs[name] for name in names}
        write_tensors(folder / file, due, hashed(len(names)), {})
        weight_map |= dict.fromkeys(due, file)
    if next(source, None) is not None:
        raise ValueError("more tensors than specs")
    if len(shards) > 1:
        total = sum(spec.num_bytes for spec in specs.values())
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return hashes


def _plan_shards(specs: Mapping[str, Spec]) -> list[list[str]]:
    """Names of each shard, in order: as many as fit, at least one."""
    shards, held = list[list[str]](), 0
    for name, spec in specs.items():
        if not shards or held + spec.num_bytes > MAX_SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += spec.num_bytes
    return shards


def _peek(tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[torch.dtype, Iterator[tuple[str, torch.Tensor]]]:
    """The dtype of the first tensor, and all of them."""
    first = next(tensors)
    return first[1].dtype, chain(iter([first]), tensors)


def _in_order(
    specs: Mapping[str, Spec], named_tensors: Iterable[tuple[str, torch.Tensor]], tied: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in the order of `specs`, early ones held back; ValueError where they differ.

    A tied `lm_head.weight` is passed over: it is the token embedding.
    """
    source = ((name, t) for name, t in named_tensors if not (tied and name == "lm_head.weight"))
    left, early = dict(specs), dict[str, torch.Tensor]()
    for due in specs:
        while due not in early:
            name, tensor = next(source, ("", None))
            if tensor is None:
                raise ValueError(f"not the weights of this config: without {', '.join(left)}")
            if left.pop(name, None) != Spec(tensor.dtype, tuple(tensor.shape)):
                raise ValueError(f"not the weights of this config: {name}, {tensor.dtype} {tuple(tensor.shape)}")
            early[name] = tensor
        yield due, early.pop(due)
    if more := [name for name, _ in source]:
        raise ValueError(f"not the weights of this config: {', '.join(more)}")


def _config(config: LlavaOnevisionConfig, geometry: Geometry, dtype: torch.dtype) -> dict[str, Any]:
    """The config with this geometry. `rope_parameters` are said twice: 4.57 reads `rope_theta` and `rope_scaling`."""
    content = config.to_dict()
    content.pop("quantization_config", None)  # of how the model was trained; what is written is not quantised
    text = content["text_config"]
    for part in (content, text, content["vision_config"]):
        part.pop("_name_or_path", None)  # the folder that it was loaded from
    scaling = dict(text["rope_parameters"])
    text["rope_theta"] = scaling.pop("rope_theta")
    text["tie_word_embeddings"] = content["tie_word_embeddings"]  # 5.x reads either, 4.57 the text's
    if scaling["rope_type"] != "default":
        text["rope_scaling"] = scaling
    content["architectures"] = ["LlavaOnevisionForConditionalGeneration"]
    content["dtype"] = text["dtype"] = content["vision_config"]["dtype"] = str(dtype).removeprefix("torch.")
    content["image_grid_pinpoints"] = geometry.pinpoints()
    content["vision_aspect_ratio"] = aspect_ratio(geometry)
    return content


def _generation_config(tokenizer: PreTrainedTokenizerBase, preparation: Preparation) -> dict[str, Any]:
    """Qwen2 ends at <|im_end|> and its padding, <|endoftext|>; Vicuna, padded with <unk> or nothing, at </s> alone.

    A base model's own end token is not the one that its answers were trained to end with: that one joins it.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ends = [end] if pad in (end, None, tokenizer.unk_token_id) else [end, pad]
    name = chat_name(preparation.template)
    template = stage_template(name, "clean", preparation.tag_policy, tokenizer, "model.init")
    learned = tokenizer.get_vocab().get(template.end)
    if learned is not None and learned not in ends:
        ends.insert(0, learned)
    return {"eos_token_id": ends, "pad_token_id": end if pad is None else pad}


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, template: TemplateName) -> None:
    """Tokenizer files; transformers 5 writes a list and a class name on which 4.57 fails, and omits what it returns."""
    if template == "vicuna":  # its chat template writes <s>, and a second one would come before it
        tokenizer = deepcopy(tokenizer)
        cast(Any, tokenizer).add_bos_token = False
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = read_json(path)
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
