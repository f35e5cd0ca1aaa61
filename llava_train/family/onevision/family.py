"""LLaVA-OneVision behind the interface of `family.base`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from llava_train.config.schema import ImageConfig
from llava_train.family.base import LANGUAGE_MODELS, HFModel, Released, Tower
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.family.onevision.processor import aspect_ratio, processor_files
from llava_train.shared.errors import Fault

if TYPE_CHECKING:
    import torch

    from llava_train.family.onevision.vision import OneVisionVision

TOWERS = ("siglip", "siglip_vision_model")  # fixed-resolution SigLIP2 checkpoints are of these types as well
TOWER_REMEDY = "use a SigLIP or fixed-resolution SigLIP2 tower, as google/siglip-so400m-patch14-384"
MAX_GRID = 6  # tiles along a side of the released grid
_RATIO = re.compile(r"anyres_max_\d+")


class OneVision:
    """See `family.base.Family`."""

    title = "LLaVA-OneVision"
    model_type = "llava_onevision"
    model_class = "LlavaOnevisionForConditionalGeneration"
    image_processor = "LlavaOnevisionImageProcessorPil"
    settings_lines = """\
model.config.image_grid_pinpoints = json.load(open(f"{folder}/preprocessor_config.json"))["image_grid_pinpoints"]
model.config.vision_aspect_ratio = json.load(open(f"{folder}/processor_config.json"))["vision_aspect_ratio"]
"""
    # finetune_ov.sh of LLaVA-NeXT, commit b42941c
    released = Released("anyres", "qwen", "front", {"fps": 1.0, "max_frames": 32})

    def takes(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == self.model_type

    def checkpoint_fault(self, path: str, config: Mapping[str, Any]) -> Fault | None:
        key = "model.init"
        inner = (("text_config", "qwen2", LANGUAGE_MODELS), ("vision_config", TOWERS[1], TOWERS))
        for name, default, known in inner:
            if (kind := (config.get(name) or {}).get("model_type", default)) not in known:
                problem = f"the {name} of {path} is of type {kind}, which no run is known to work with"
                return Fault(key, problem, f"use a checkpoint of one of these: {', '.join(known)}")
        layer, strategy = config.get("vision_feature_layer", -1), config.get("vision_feature_select_strategy", "full")
        if not isinstance(layer, int) or strategy != "full":
            problem = f"{path}: vision_feature_layer {layer}, vision_feature_select_strategy {strategy}"
            return Fault(key, problem, "use a checkpoint with one vision_feature_layer and the strategy full")
        if not _RATIO.fullmatch(ratio := str(config.get("vision_aspect_ratio", "anyres_max_9"))):
            problem = f"{path}: vision_aspect_ratio {ratio}, which transformers cannot apply either"
            return Fault(key, problem, "write anyres_max_N in config.json: features are downscaled to about N tiles")
        return None

    def tower_fault(self, path: str, config: Mapping[str, Any]) -> Fault | None:
        kind = str(config.get("model_type"))
        if kind in TOWERS:
            return None
        problem, remedy = f"{path} holds a {kind} model", TOWER_REMEDY
        if kind.startswith("siglip2"):
            problem += ": SigLIP2 NaFlex, whose linear patch embedding takes no square tiles"
            remedy = "use its fixed-resolution sister, as google/siglip2-so400m-patch14-384"
        if kind.startswith("clip"):
            problem += ", the tower of LLaVA-1.5 and LLaVA-NeXT; LLaVA-OneVision takes SigLIP"
        return Fault("model.vision_tower", problem, remedy)

    def geometry(self, tile_size: int, patch_size: int, image: ImageConfig) -> OneVisionGeometry:
        assert image.mode != "checkpoint", "its grid is in the checkpoint"
        grid = tuple((rows, columns) for rows, columns in image.grid)
        return OneVisionGeometry(tile_size, patch_size, image.mode, grid, image.max_tiles)

    def checkpoint_geometry(self, config: Any, mode: str = "anyres") -> OneVisionGeometry:
        size = config.vision_config.image_size
        grid = tuple((height // size, width // size) for height, width in config.image_grid_pinpoints or [])
        max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        return OneVisionGeometry(size, config.vision_config.patch_size, mode, grid, max_tiles)

    def with_processor(self, config: Any, images: Mapping[str, Any], processor: Mapping[str, Any]) -> Any:
        config = deepcopy(config)
        config.image_grid_pinpoints = images.get("image_grid_pinpoints", config.image_grid_pinpoints)
        config.vision_aspect_ratio = processor.get("vision_aspect_ratio", config.vision_aspect_ratio)
        return config

    def config_fields(self, geometry: OneVisionGeometry) -> dict[str, Any]:
        return {"image_grid_pinpoints": geometry.pinpoints(), "vision_aspect_ratio": aspect_ratio(geometry)}

    def processor_files(self, geometry: OneVisionGeometry) -> dict[str, dict[str, Any]]:
        return processor_files(geometry)

    def vision(self, hf_model: HFModel, geometry: OneVisionGeometry) -> OneVisionVision:
        from llava_train.family.onevision.vision import OneVisionVision

        return OneVisionVision(hf_model, geometry)

    def tower(self, config: Any) -> Tower:
        """A SigLIP tower. A published one (with its pooling head) loses the head and its last layer.

        LLaVA-OneVision reads the output of layer 26 of SO400M's 27: the last hidden state of the tower cut so.
        A tower whose config has `vision_use_head: false` is taken whole.
        """
        from transformers import SiglipVisionModel

        config = getattr(config, "vision_config", config)
        dropped = r"^(text_model\.|logit_)"
        if config.vision_use_head:
            config.vision_use_head = False
            config.num_hidden_layers -= 1
            dropped += rf"|^(vision_model\.)?(head\.|encoder\.layers\.{config.num_hidden_layers}\.)"
        return Tower(SiglipVisionModel, config, dropped)

    def joined_config(self, text: Any, tower: Any, image_token_id: int, video_token_id: int) -> Any:
        from transformers import LlavaOnevisionConfig

        sides = [tower.image_size * count for count in range(1, MAX_GRID + 1)]
        return LlavaOnevisionConfig(
            vision_config=tower,
            text_config=text,
            image_grid_pinpoints=[[height, width] for height in sides for width in sides],
            image_token_index=image_token_id,
            video_token_index=video_token_id,
            tie_word_embeddings=text.tie_word_embeddings,
        )

    def draw_new_weights(self, hf_model: HFModel, dtype: torch.dtype, seed: int) -> None:
        from llava_train.family.onevision.new_weights import draw

        draw(hf_model, dtype, seed)

    def tiny_config(
        self, text: Any, tower: Mapping[str, int], tile_size: int, patch_size: int, max_tiles: int, ids: tuple[int, int]
    ) -> Any:
        """Grid (1x1) to (3x3)."""
        from transformers import LlavaOnevisionConfig, SiglipVisionConfig

        sides = [tile_size * n for n in (1, 2, 3)]
        vision: Any = dict(tower)
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(
                **vision, image_size=tile_size, patch_size=patch_size, vision_use_head=False
            ),
            text_config=text,
            image_token_index=ids[0],
            video_token_index=ids[1],
            image_grid_pinpoints=[[height, width] for height in sides for width in sides],
            vision_aspect_ratio=f"anyres_max_{max_tiles}",
            tie_word_embeddings=text.tie_word_embeddings,
        )
