"""Checkpoints of the original trainer (LLaVA-VL/LLaVA-NeXT, commit b42941c): their kinds, tensor names and settings.

Enters: a folder's files and its config.json, read as JSON. Leaves: names and a config of transformers. What that
cannot express is an error that names it, or a note where the weights are not concerned.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Qwen2Config, SiglipVisionConfig

from llava_train.family.registry import FAMILIES
from llava_train.model.files.stored_tensors import has_weights
from llava_train.shared.errors import ConfigError, Fault
from llava_train.start_folder.files import read_object
from llava_train.start_folder.find import ADAPTER_CONFIG

OriginalKind = Literal["full", "projector", "lora", "language_model", "converted"]

BESIDE_ADAPTER = "non_lora_trainables.bin"
PROJECTOR_FILE = "mm_projector.bin"
MODEL_TYPES: dict[str, OriginalKind] = {
    "llava_qwen": "full",
    "qwen2": "language_model",
    **{family.model_type: "converted" for family in FAMILIES},
}
SO400M: dict[
    str, Any
] = {  # siglip-so400m-patch14-384 without its last layer and its pooling head, as the original uses it
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
DEFAULT_MAX_TILES = 9
_NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
)
_TEXT_KEYS = (
    *_NEEDED,
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)

# pattern of a name in a file -> name in the model as transformers 5 names it
_QWEN2 = (
    (r"model\.((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
    (r"(lm_head\..+)", r"\1"),
)
_SIGLIP = r"((?:embeddings|encoder|post_layernorm)\..+)"
NAMES: dict[OriginalKind | Literal["vision_tower"], tuple[tuple[str, str], ...]] = {
    "full": (
        (rf"model\.vision_tower\.vision_tower\.vision_model\.{_SIGLIP}", r"model.vision_tower.\1"),
        (r"model\.mm_projector\.0\.(.+)", r"model.multi_modal_projector.linear_1.\1"),
        (r"model\.mm_projector\.2\.(.+)", r"model.multi_modal_projector.linear_2.\1"),
        (r"model\.image_newline", "model.image_newline"),
        *_QWEN2,
    ),
    "language_model": _QWEN2,
    "converted": (
        (rf"(?:model\.)?vision_tower\.(?:vision_model\.)?{_SIGLIP}", r"model.vision_tower.\1"),
        (r"(?:model\.)?multi_modal_projector\.(.+)", r"model.multi_modal_projector.\1"),
        (r"(?:model\.)?image_newline", "model.image_newline"),
        (r"(?:language_model\.model|model\.language_model)\.(.+)", r"model.language_model.\1"),
        (r"(?:language_model\.)?(lm_head\..+)", r"\1"),
    ),
    "vision_tower": ((rf"(?:vision_model\.)?{_SIGLIP}", r"model.vision_tower.\1"),),
}
# computed at load since transformers 4.32; older checkpoints store it
BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_PAIR = re.compile(r"\((\d+)x(\d+)\)")


def hf_name(kind: OriginalKind | Literal["vision_tower"], name: str) -> str:
    """The model's name for a tensor in a file of this kind; "" where there is none.

    Worked case: full, `model.mm_projector.2.bias` -> `model.multi_modal_projector.linear_2.bias`.
    """
    for pattern, replacement in NAMES[kind]:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return ""


def original_kind(key: str, folder: Path) -> OriginalKind:
    """What a checkpoint folder holds, told by its files. Raises ConfigError where that is none or several."""
    has_model = has_weights(folder)
    found: dict[OriginalKind, str] = {}
    if (folder / ADAPTER_CONFIG).is_file():
        found["lora"] = ADAPTER_CONFIG
    if (folder / PROJECTOR_FILE).is_file():
        found["projector"] = PROJECTOR_FILE
    config = read_object(key, folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        told = f"{folder} holds a {model_type} model"
        raise ConfigError.one(key, told, f"known: {', '.join(MODEL_TYPES)} (a Qwen2 language model)")
    if has_model:
        found[MODEL_TYPES[model_type]] = "a whole model"
    if len(found) != 1:
        problem = f"{folder} holds {' and '.join(found.values()) or 'no weights'}"
        raise ConfigError.one(
            key, problem, f"keep one of: a whole model, {PROJECTOR_FILE}, {ADAPTER_CONFIG} with its weights"
        )
    return next(iter(found))


def text_config(config: dict[str, Any]) -> Qwen2Config:
    """The language model of an original's config.json, which is a flat Qwen2 config with further keys."""
    faults = [_setting(name, "is absent", "copy config.json again") for name in _NEEDED if name not in config]
    if config.get("rope_scaling"):  # the original drops it before it builds its layers
        faults.append(
            _setting("rope_scaling", f"is {config['rope_scaling']}", "the original knows none: set it to null")
        )
    if faults:
        raise ConfigError(faults)
    return Qwen2Config(**{name: config[name] for name in _TEXT_KEYS if name in config})


def tower_config(folder: Path | None) -> tuple[SiglipVisionConfig, str]:
    """The tower as the original uses it: of SO400M, or of a SigLIP folder; and a pattern of that folder's unused keys.

    One with a pooling head loses it and its last layer: the original reads the last but one hidden state.
    """
    if folder is None:
        return SiglipVisionConfig(**SO400M), "^$"
    content = read_object("vision_tower", folder / "config.json")
    content = content.get("vision_config", content) if content.get("model_type") == "siglip" else content
    if content.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        problem = f"{folder} holds a {content['model_type']} model"
        raise ConfigError.one("vision_tower", problem, "give a SigLIP checkpoint, as in mm_vision_tower of config.json")
    config = SiglipVisionConfig(**content)
    unused = r"text_model\.|logit_"
    if config.vision_use_head:
        config.vision_use_head = False
        config.num_hidden_layers -= 1
        unused += rf"|(vision_model\.)?(head\.|encoder\.layers\.{config.num_hidden_layers}\.)"
    return config, f"^({unused})"


@dataclass(frozen=True)
class Pixels:
    """How images became tiles. notes: what transformers does otherwise."""

    mode: Literal["square", "anyres"]
    grid: tuple[tuple[int, int], ...]  # (rows, columns), () in mode square
    max_tiles: int
    notes: tuple[str, ...]


def read_pixels(config: dict[str, Any], tile: int) -> Pixels:
    """The image settings of an original's config.json. tile: pixels along a side. Raises ConfigError with all faults.

    transformers knows anyres with newlines (`spatial_unpad`), and always downscales above a number of tiles: plain
    `anyres` gets a number that its grid never exceeds. `square` with `flat` stays: the intermediate of a first stage.
    """
    faults = [
        _setting(name, f"is {value!r}", f"transformers has only {allowed!r}")
        for name, default, allowed in (
            ("mm_projector_type", "linear", "mlp2x_gelu"),
            ("mm_resampler_type", None, None),
            ("mm_vision_select_feature", "patch", "patch"),
            ("mm_use_im_start_end", False, False),
            ("add_faster_video", False, False),
        )
        if (value := config.get(name, default)) != allowed
    ]
    merge, ratio = config.get("mm_patch_merge_type", "flat"), config.get("image_aspect_ratio", "square")
    match = re.fullmatch(r"anyres(?:_max_(\d+))?", str(ratio))
    grid = _grid(config.get("image_grid_pinpoints"), tile, faults) if match else ()
    if not (match and merge == "spatial_unpad") and (ratio, merge) != ("square", "flat"):
        problem = f"is {merge} with image_aspect_ratio {ratio}"
        faults.append(_setting("mm_patch_merge_type", problem, "known: spatial_unpad with anyres, flat with square"))
    if faults:
        raise ConfigError(faults)
    most = max((rows * columns for rows, columns in grid), default=0)
    max_tiles = int(match[1]) if match and match[1] else max(DEFAULT_MAX_TILES, most)
    return Pixels("anyres" if match else "square", grid, max_tiles, tuple(_notes(config, ratio, max_tiles)))


def _notes(config: dict[str, Any], ratio: str, max_tiles: int) -> list[str]:
    notes = []
    if ratio == "anyres":
        notes.append(f"image_aspect_ratio anyres became anyres_max_{max_tiles}, which its grid never exceeds")
    if ratio == "square":
        notes.append("image_aspect_ratio square (one tile, no newline): transformers has no such mode; an intermediate")
    if (position := config.get("mm_newline_position") or "one_token") != "one_token":
        notes.append(f"mm_newline_position {position}: transformers ends a video in one newline (one_token)")
    if (stride := config.get("mm_spatial_pool_stride") or 2) != 2:
        notes.append(f"mm_spatial_pool_stride {stride}: transformers pools video frames by 2")
    return notes


def _grid(value: Any, tile: int, faults: list[Fault]) -> tuple[tuple[int, int], ...]:
    """(rows, columns) in the original's order; its pairs are (width, height) in pixels.

    `(1x1),...,(6x6)` is every pair from the first to the last, the first number outermost.
    """
    if isinstance(value, str) and (pairs := [(int(a), int(b)) for a, b in _PAIR.findall(value)]):
        (width, height), (last_width, last_height) = pairs[0], pairs[-1]
        return tuple((h, w) for w in range(width, last_width + 1) for h in range(height, last_height + 1))
    try:
        pairs = [
            (int(width), int(height)) for width, height in (json.loads(value) if isinstance(value, str) else value)
        ]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or any(side <= 0 or side % tile for side in sum(pairs, ())):
        remedy = f"a list of [width, height], multiples of the tile's {tile} pixels, or (1x1),...,(6x6)"
        faults.append(_setting("image_grid_pinpoints", f"is {value!r}", remedy))
        return ()
    return tuple((height // tile, width // tile) for width, height in pairs)


def lora_scale(config: dict[str, Any]) -> float:
    """What the product of an adapter's matrices is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    plain = {"peft_type": ("LORA",), "bias": ("none",)}
    empty = ("modules_to_save", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "use_qalora")
    faults = [
        Fault(
            f"{ADAPTER_CONFIG}: {name}", f"is {config[name]!r}", "convert merges plain LoRA alone; merge it with peft"
        )
        for name in (*plain, *empty)
        if name in config and (config[name] not in plain[name] if name in plain else config[name])
    ]
    if faults:
        raise ConfigError(faults)
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError.one(
            ADAPTER_CONFIG, f"r or lora_alpha cannot be read: {error}", "copy the folder again"
        ) from error
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _setting(name: str, problem: str, remedy: str) -> Fault:
    return Fault(f"config.json: {name}", problem, remedy)
