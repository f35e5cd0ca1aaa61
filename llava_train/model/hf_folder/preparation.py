"""How a checkpoint prepares its samples: template, geometry and processor, kept in `llava_train.json` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from transformers import LlavaOnevisionConfig

from llava_train.config.schema import StageConfig, VideoConfig
from llava_train.family.onevision.geometry import Geometry, make_geometry
from llava_train.family.onevision.start import open_start
from llava_train.shared.json_files import read_json
from llava_train.text.base import TagPolicy, TemplateName

PREPARATION_FILE = "llava_train.json"
RELEASED: dict[str, Any] = {  # the released LLaVA-OneVision checkpoints: finetune_ov.sh of LLaVA-NeXT, commit b42941c
    "mode": "anyres",
    "template": "qwen",
    "tag_policy": "front",
    "video": {"fps": 1.0, "max_frames": 32},
}


@dataclass(frozen=True)
class Preparation:
    """How samples were prepared for a checkpoint: what another program must know to ask it as it was trained."""

    geometry: Geometry
    template: TemplateName
    tag_policy: TagPolicy
    video: VideoConfig


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


def notes_of(preparation: Preparation) -> dict[str, Any]:
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


def _read_if_there(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    return read_json(path) if path.is_file() else {}
