"""An original LLaVA-NeXT checkpoint as a Hugging Face folder: every tensor placed once, or nothing written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from llava_train.config.schema import ConvertConfig, ImageConfig, VideoConfig
from llava_train.family.registry import family_of, family_of_parts
from llava_train.model.convert.original import (
    BESIDE_ADAPTER,
    PROJECTOR_FILE,
    OriginalKind,
    Pixels,
    original_kind,
    read_pixels,
    text_config,
    tower_config,
)
from llava_train.model.convert.tensor_sources import (
    EMBEDDING,
    NEWLINE,
    LowRank,
    Shape,
    TensorFolder,
    check_head,
    choose,
    group_of,
    open_adapter,
    open_tensor_folder,
)
from llava_train.model.files.stored_tensors import StoredTensors, open_weights
from llava_train.model.hf_folder.card import Card, last_names, without_paths
from llava_train.model.hf_folder.folder import write_checkpoint
from llava_train.model.hf_folder.preparation import Preparation
from llava_train.model.hf_folder.weights import expected_specs
from llava_train.model.prepare.trained_parts import PARTS
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.errors import ConfigError, Fault
from llava_train.start_folder.files import read_object
from llava_train.text.base import TemplateName
from llava_train.text.placeholders import add_tags

NEWLINE_SEED = 0
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class Conversion:
    """A checked plan: `sources` holds the origin of each of the model's names, but for a new newline."""

    kind: OriginalKind
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    preparation: Preparation
    shapes: dict[str, Shape]
    sources: dict[str, TensorFolder]
    low_rank: dict[str, LowRank]
    dtype: torch.dtype
    notes: tuple[str, ...]

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters of the model, each read when it is asked for."""
        for name, shape in self.shapes.items():
            if name not in self.sources:
                yield name, _new_newline(shape).to(self.dtype)
                continue
            tensor = self.sources[name].read(name)
            if name in self.low_rank:
                tensor = self.low_rank[name].added_to(tensor)
            yield name, tensor.to(self.dtype)

    def report(self) -> dict[str, str]:
        """What was found, where each part comes from and what it becomes."""
        told: dict[str, str] = {"kind": self.kind}
        for group in (*PARTS, "image_newline"):
            names = [name for name in self.shapes if group_of(name) == group]
            dtypes = Counter(self.sources[name].dtype(name) for name in names if name in self.sources)
            origin = next((self.sources[name].label for name in names if name in self.sources), "")
            stored = ", ".join(f"{count} {_short(dtype)}" for dtype, count in dtypes.items())
            plural = "" if len(names) == 1 else "s"
            told[group] = (
                f"{len(names)} tensor{plural} from {origin} ({stored})" if origin else f"new, seed {NEWLINE_SEED}"
            )
        if self.low_rank:
            scale = next(iter(self.low_rank.values())).scale
            told["lora"] = f"{len(self.low_rank)} weights merged in fp32, scale {scale:g}"
        if self.notes:
            told["notes"] = "; ".join(self.notes)
        total = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        told["size"] = f"{total:,} parameters in {_short(self.dtype)}, {total * self.dtype.itemsize / 1e9:.2f} GB"
        return told


def convert(settings: ConvertConfig) -> dict[str, str]:
    """Writes the folder `settings.out`. Returns the report. Raises ConfigError, and writes nothing, on any doubt."""
    conversion = plan(settings)
    report = conversion.report()
    card = Card(
        recipe=last_names(settings.original),
        stage="converted",
        init=settings.original,
        made="converted by llava_train",
        settings={name: without_paths(text) for name, text in report.items()},
    )
    write_checkpoint(
        Path(settings.out),
        conversion.named_tensors(),
        conversion.config,
        conversion.tokenizer,
        conversion.preparation,
        card,
    )
    return report


def plan(settings: ConvertConfig) -> Conversion:
    """Everything about a conversion but the weights themselves. Raises ConfigError with all faults found."""
    kind, base_kind = _kinds(settings)
    original = Path(settings.original)
    content = read_object("original", original / "config.json")
    config, unused = _config(settings, base_kind, content)
    pixels = read_pixels(content, cast(Any, config.vision_config).image_size)
    _set_pixels(config, pixels)
    tokenizer = _tokenizer(settings, config)
    shapes = {name: spec.shape for name, spec in expected_specs(config, torch.float32).items()}
    sources = _sources(settings, kind, base_kind, shapes, unused)
    chosen, faults = choose(shapes, sources)
    low_rank: dict[str, LowRank] = {}
    if kind == "lora":
        low_rank, more = open_adapter(original, chosen)
        faults += more
    faults += _absent_parts(settings, shapes, chosen, may_lack_newline=kind == "projector" or pixels.mode == "square")
    if config.tie_word_embeddings and not faults:
        faults = check_head(chosen)
    if faults:
        raise ConfigError(faults)
    notes = [*pixels.notes, *_notes(settings, sources, chosen)]
    dtype = chosen[EMBEDDING].dtype(EMBEDDING)
    return Conversion(
        kind, config, tokenizer, _preparation(config, pixels), shapes, chosen, low_rank, dtype, tuple(notes)
    )


def _kinds(settings: ConvertConfig) -> tuple[OriginalKind, OriginalKind | None]:
    """What `original` and `base` hold. Raises ConfigError where they do not go together."""
    faults = []
    kind = original_kind("original", Path(settings.original))
    base_kind = original_kind("base", Path(settings.base)) if settings.base else None
    if kind not in ("full", "projector", "lora"):
        told = "is in Hugging Face form already" if kind == "converted" else "is a language model alone"
        faults.append(Fault("original", f"{settings.original} {told}", "name a checkpoint of the original trainer"))
    elif kind == "full" and settings.base:
        faults.append(Fault("base", "would be ignored: the original is a whole model", "leave base out"))
    elif kind != "full" and base_kind is None:
        remedy = "set base=DIR, the model that it was trained on"
        faults.append(Fault("base", f"is not set, and {settings.original} holds no language model ({kind})", remedy))
    elif base_kind in ("projector", "lora"):
        faults.append(Fault("base", f"{settings.base} is no whole model ({base_kind})", "convert that one first"))
    if base_kind == "converted" and settings.vision_tower:
        faults.append(Fault("vision_tower", "would be ignored: the base holds the tower", "leave vision_tower out"))
    if faults:
        raise ConfigError(faults)
    return kind, base_kind


def _config(
    settings: ConvertConfig, base_kind: OriginalKind | None, content: dict[str, Any]
) -> tuple[PretrainedConfig, str]:
    """The model's config, and a pattern of keys that a tower's folder holds and the model does not use."""
    if base_kind == "converted":
        return AutoConfig.from_pretrained(settings.base, trust_remote_code=False), "^$"
    text = text_config(content)
    vision, unused = tower_config(Path(settings.vision_tower) if settings.vision_tower else None)
    family = family_of_parts(vision.to_dict())
    return family.joined_config(text, vision, 0, 0), unused  # the ids come with the tokenizer


def _set_pixels(config: PretrainedConfig, pixels: Pixels) -> None:
    """In mode square, which transformers does not know, the config keeps the grid that it has."""
    if pixels.mode == "anyres":
        tower, family = cast(Any, config).vision_config, family_of(config)
        image = ImageConfig("anyres", [list(pair) for pair in pixels.grid], pixels.max_tiles)
        geometry = family.geometry(tower.image_size, tower.patch_size, image)
        for name, value in family.config_fields(geometry).items():
            setattr(config, name, value)


def _preparation(config: PretrainedConfig, pixels: Pixels) -> Preparation:
    """As the original's scripts prepare samples; its config.json names no template."""
    family = family_of(config)
    released, geometry = family.released, family.checkpoint_geometry(config, pixels.mode)
    template: TemplateName = "plain" if pixels.mode == "square" else released.template
    return Preparation(geometry, template, released.tag_policy, VideoConfig(**released.video))


def _tokenizer(settings: ConvertConfig, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The original's tokenizer, or the base's, with both tags; their ids are written to the config."""
    folders = [folder for folder in (settings.original, settings.base) if folder]
    folder = next((f for f in folders if any((Path(f) / name).is_file() for name in _TOKENIZER_FILES)), "")
    if not folder:
        problem = f"there are no tokenizer files in {' or '.join(folders)}"
        raise ConfigError.one("original", problem, "copy those of the language model there")
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config.text_config, trust_remote_code=False)
    add_tags(tokenizer)
    ids = tokenizer.get_added_vocab()
    config.image_token_index, config.video_token_index = ids[IMAGE_TAG], ids[VIDEO_TAG]
    vocabulary = cast(Any, config.text_config).vocab_size
    if max(ids[IMAGE_TAG], ids[VIDEO_TAG]) >= vocabulary:
        problem = f"{vocabulary} embedding rows hold no {IMAGE_TAG} and {VIDEO_TAG} of {folder}"
        raise ConfigError.one("original", problem, "use the tokenizer that belongs to the model")
    return tokenizer


def _sources(
    settings: ConvertConfig, kind: OriginalKind, base_kind: OriginalKind | None, shapes: dict[str, Shape], unused: str
) -> list[TensorFolder]:
    """In the order in which they count. The tower's folder is opened where no other holds any of the tower."""
    original = Path(settings.original)
    if kind == "full":
        stored = open_weights("original", original)
    else:
        stored = StoredTensors("original", [original / (PROJECTOR_FILE if kind == "projector" else BESIDE_ADAPTER)])
    sources = [open_tensor_folder("original", settings.original, stored, "full", shapes)]
    if base_kind is not None:
        stored = open_weights("base", Path(settings.base))
        sources.append(open_tensor_folder("base", settings.base, stored, base_kind, shapes))
    has_tower = any(group_of(name) == "vision_tower" for source in sources for name in source.names)
    if settings.vision_tower and not has_tower:
        stored = open_weights("vision_tower", Path(settings.vision_tower))
        sources.append(
            open_tensor_folder("vision_tower", settings.vision_tower, stored, "vision_tower", shapes, unused)
        )
    return sources


def _absent_parts(
    settings: ConvertConfig, shapes: dict[str, Shape], chosen: dict[str, TensorFolder], may_lack_newline: bool
) -> list[Fault]:
    """Parts of which no source holds anything. The original saves no newline beside a projector alone."""
    folders = " and ".join(folder for folder in (settings.original, settings.base, settings.vision_tower) if folder)
    remedies = {
        "vision_tower": "set vision_tower=DIR, the folder of the tower that config.json calls mm_vision_tower",
        "projector": "the original saves it with every training; use a whole checkpoint",
        "language_model": "set base=DIR to the model that it was trained on",
        "image_newline": f"{NEWLINE} was trained with and is lost; use a checkpoint that holds it",
    }
    absent = {group_of(name) for name in shapes} - {group_of(name) for name in chosen}
    if may_lack_newline:
        absent.discard("image_newline")
    return [Fault("original", f"no {group} in {folders}", remedies[group]) for group in sorted(absent)]


def _notes(settings: ConvertConfig, sources: list[TensorFolder], chosen: dict[str, TensorFolder]) -> list[str]:
    notes = []
    if buffers := sum(source.num_buffers for source in sources):
        notes.append(f"{buffers} rotary_emb.inv_freq left out: the model computes them")
    if settings.vision_tower and "vision_tower" not in {source.key for source in sources}:
        notes.append(f"{settings.vision_tower} gave the tower's config alone: the checkpoint holds its weights")
    if NEWLINE not in chosen:
        notes.append("image_newline was not saved by this stage of the original: it is drawn anew")
    return notes


def _new_newline(shape: Shape) -> torch.Tensor:
    """With standard deviation 1/sqrt(hidden): LLaVA-NeXT, llava_arch.py, commit b42941c."""
    generator = torch.Generator().manual_seed(NEWLINE_SEED)
    return torch.empty(shape).normal_(std=1 / math.sqrt(shape[0]), generator=generator)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
