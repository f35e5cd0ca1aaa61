"""How a checkpoint prepares its samples: template, geometry and processor, kept in `llava_train.json` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from llava_train.config.schema import StageConfig, VideoConfig
from llava_train.family.base import Family, Geometry
from llava_train.family.registry import family_of
from llava_train.model.start.start_faults import open_start
from llava_train.shared.json_files import read_json
from llava_train.text.base import TagPolicy, TemplateName

PREPARATION_FILE = "llava_train.json"


@dataclass(frozen=True)
class Preparation:
    """How samples were prepared for a checkpoint: what another program must know to ask it as it was trained."""

    geometry: Geometry
    template: TemplateName
    tag_policy: TagPolicy
    video: VideoConfig


def read_preparation(folder: str, config: PretrainedConfig, adapter: str = "") -> Preparation:
    """How to prepare samples for a checkpoint: from its notes, or as for the released ones where it has none.

    What the folder of an adapter on it notes, and the grid of the processor that lies there, go before its base's.
    """
    family = family_of(config)
    notes = asdict(family.released) | _read_if_there(Path(folder) / PREPARATION_FILE)
    if adapter:
        notes |= _read_if_there(Path(adapter) / PREPARATION_FILE)
        processor = _read_if_there(Path(adapter) / "processor_config.json")
        images = _read_if_there(Path(adapter) / "preprocessor_config.json")  # of 4.57; 5.x keeps it in the other file
        config = family.with_processor(config, images or processor.get("image_processor", {}), processor)
    geometry = family.checkpoint_geometry(config, notes["mode"])
    return Preparation(geometry, notes["template"], notes["tag_policy"], VideoConfig(**notes["video"]))


def notes_of(preparation: Preparation) -> dict[str, Any]:
    return {
        "mode": preparation.geometry.mode,
        "template": preparation.template,
        "tag_policy": preparation.tag_policy,
        "video": asdict(preparation.video),
    }


def checkpoint_geometry(config: PretrainedConfig) -> Any:
    """The geometry that transformers applies to a checkpoint with this config, of its family's own class."""
    family = family_of(config)
    return family.checkpoint_geometry(config, family.released.mode)


def stage_geometries(
    stages: Mapping[str, StageConfig], init: str, family: Family, tile_size: int, patch_size: int
) -> dict[str, Geometry]:
    """By stage, of a run that starts from the checkpoint `init`, or from parts where it is empty; no weights are read.

    tile_size, patch_size: of the vision tower, in pixels.
    """
    geometries: dict[str, Geometry] = {}
    for name, stage in stages.items():
        if stage.image.mode != "checkpoint":
            geometries[name] = family.geometry(tile_size, patch_size, stage.image)
        elif geometries:
            geometries[name] = list(geometries.values())[-1]
        else:
            folder = open_start("model.init", init, weights=False).folder
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            geometries[name] = read_preparation(str(folder), config).geometry
    return geometries


def _read_if_there(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    return read_json(path) if path.is_file() else {}
