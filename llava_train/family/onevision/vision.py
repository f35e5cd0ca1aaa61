"""Tiles to visual tokens: tower and projector, then unpad, downscale, pool, add newlines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

from llava_train.costs.dims import num_tower_layers
from llava_train.family.base import HFModel, VisualLayout
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.family.towers import siglip_features


class OneVisionVision:
    """See `family.base.Vision`."""

    def __init__(self, hf_model: HFModel, geometry: OneVisionGeometry):
        self._model, self._geometry = hf_model.model, geometry
        self._num_layers = num_tower_layers(hf_model.config)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._model.multi_modal_projector(siglip_features(self._model.vision_tower, pixels, self._num_layers))

    def pack(self, features: torch.Tensor, layouts: Sequence[VisualLayout]) -> torch.Tensor:
        return pack_features(features, layouts, self._geometry, self._model.image_newline.to(features.device))

    def unused(self) -> torch.Tensor:
        """The newline, which layouts of kind square leave out."""
        return self._model.image_newline.sum()


def pack_features(
    features: torch.Tensor, layouts: Sequence[VisualLayout], geometry: OneVisionGeometry, image_newline: torch.Tensor
) -> torch.Tensor:
    """Visual tokens [V, hidden] of all layouts in order, from features [N, side**2, hidden] of their N tiles in order.

    square: the tile. padded: the tile and one newline. anyres: the overview, then the canvas without its padding, each
    row closed by a newline. video: each frame pooled to half the side, one newline after the last frame.
    Raises ValueError where tiles or tokens differ from what the layouts say.
    """
    num_tiles = sum(layout.num_tiles for layout in layouts)
    if num_tiles != len(features):
        raise ValueError(f"the visuals are laid out for {num_tiles} tiles, the batch holds {len(features)}")
    newline = image_newline[None]
    packed = []
    for layout, tiles in zip(layouts, features.split([layout.num_tiles for layout in layouts]), strict=True):
        match layout.kind:
            case "square":
                tokens = tiles[0]
            case "padded":
                tokens = torch.cat([tiles[0], newline])
            case "anyres":
                tokens = torch.cat([tiles[0], _rows_with_newline(tiles[1:], layout, geometry, newline)])
            case "video":
                tokens = torch.cat([_pooled_frames(tiles, geometry), newline])
        if len(tokens) != layout.num_tokens:
            raise ValueError(f"{layout} gives {len(tokens)} visual tokens")
        packed.append(tokens)
    return torch.cat(packed)


def _rows_with_newline(
    tiles: torch.Tensor, layout: VisualLayout, geometry: OneVisionGeometry, newline: torch.Tensor
) -> torch.Tensor:
    """[rows*columns, side**2, hidden] -> [H * (W + 1), hidden] of the unpadded, perhaps downscaled canvas of H x W."""
    (rows, columns), side = layout.grid, geometry.side
    canvas = tiles.view(rows, columns, side, side, -1).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    crop = geometry.feature_crop(layout)
    kept = canvas[crop.rows, crop.columns]
    if crop.size != kept.shape[:2]:
        kept = interpolate(kept.permute(2, 0, 1)[None], size=crop.size, mode="bilinear")[0].permute(1, 2, 0)
    return torch.cat([kept, newline.expand(len(kept), 1, -1)], dim=1).flatten(0, 1)


def _pooled_frames(frames: torch.Tensor, geometry: OneVisionGeometry) -> torch.Tensor:
    """[frames, side**2, hidden] -> [frames * pooled_side**2, hidden]."""
    maps = frames.view(len(frames), geometry.side, geometry.side, -1).permute(0, 3, 1, 2)
    size = (geometry.pooled_side, geometry.pooled_side)
    return interpolate(maps, size=size, mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)
