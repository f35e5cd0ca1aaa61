"""The visual geometry of LLaVA-OneVision: from sizes alone to tiles and tokens, before any pixel is decoded.

Enters: height, width (pixels) and numbers of frames. Leaves: a `VisualLayout` for each image or video, the crop by
which its features are packed, and the pixels of its tiles. The rules are those of transformers 5.23
(`select_best_resolution`, `unpad_image`, `LlavaOnevisionModel.pack_image_features`), which the tests run beside these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llava_train.family.base import MediumShape, MediumShapes, VisualLayout
from llava_train.family.pixels import cut_canvas, pad_to_square, squash

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

DOWNSCALE_ABOVE = 1.1  # transformers, LlavaOnevisionModel.pack_image_features: ratio of sides that starts the downscale
PADDING = (127, 127, 127)  # int(0.5 * 255): the image mean, by which transformers' pad_to_square fills


@dataclass(frozen=True)
class FeatureCrop:
    """What of an anyres canvas's features [S * grid rows, S * grid columns] is kept, and the size it is scaled to."""

    rows: slice
    columns: slice
    size: tuple[
        int, int
    ]  # (rows, columns) in tokens; that of the crop unless downscaled (bilinear, align_corners False)


@dataclass(frozen=True)
class OneVisionGeometry:
    """Sizes to layouts. `grid` lists candidate canvases as (rows, columns) of tiles; its order decides ties.

    Worked case, tile 32, patch 8 (side 4), grid {1,2} x {1,2}: a 64 x 64 image fills the (2, 2) canvas, 5 tiles;
    tokens = 4*4 overview + 8 rows * (8 + 1 newline) = 88. A video of 8 frames: 8 * 2*2 + 1 = 33 tokens.
    """

    tile_size: int
    patch_size: int
    mode: str  # "square" or "anyres"
    grid: tuple[tuple[int, int], ...]
    max_tiles: int

    @property
    def side(self) -> int:
        """Tokens along one side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def pooled_side(self) -> int:
        """Tokens along one side of a video frame."""
        return math.ceil(self.side / 2)

    def pinpoints(self) -> list[list[int]]:
        """The grid as [height, width] in pixels, the form of HF's `image_grid_pinpoints`."""
        return [[rows * self.tile_size, columns * self.tile_size] for rows, columns in self.grid]

    @property
    def is_in_transformers(self) -> bool:
        """transformers has no mode square."""
        return self.mode != "square"

    def layouts(self, media: Sequence[MediumShape]) -> list[VisualLayout]:
        """Of all media of one sample: only an image alone is tiled."""
        tiled = self.mode == "square" or sum(medium.kind == "image" for medium in media) == 1
        image = self.image if tiled else self.padded
        return [
            self.video(m.frames, m.height, m.width) if m.kind == "video" else image(m.height, m.width) for m in media
        ]

    def counts(self, owner: np.ndarray, media: MediumShapes) -> tuple[np.ndarray, np.ndarray]:
        """As `layouts`, of many samples at once: int32 [M] tiles and tokens."""
        is_image = ~media.is_video
        num_images = np.bincount(owner[is_image], minlength=owner.max(initial=-1) + 1)
        alone = np.flatnonzero(is_image & ((num_images[owner] == 1) | (self.mode == "square")))
        tiles, tokens = np.ones(len(owner), np.int32), np.full(len(owner), self.side**2 + 1, np.int32)
        tiles[alone], tokens[alone] = self.image_arrays(media.heights[alone], media.widths[alone])
        frames = media.frames[media.is_video]
        tiles[media.is_video], tokens[media.is_video] = frames, frames * self.pooled_side**2 + 1
        return tiles, tokens

    def cut(self, image: PILImage, layout: VisualLayout, out: np.ndarray) -> None:
        """Overview first, then the tiles of the canvas row by row: bit-equal to transformers' PIL image processor."""
        assert (image.height, image.width) == (layout.height, layout.width), (image.size, layout)
        out[0] = squash(pad_to_square(image, PADDING) if layout.kind == "padded" else image, self.tile_size)
        if layout.kind == "anyres":
            height, width = self.resized(layout)
            if height == width == self.tile_size:  # its only tile is the overview
                out[1] = out[0]
            else:
                cut_canvas(image.resize((width, height), resample=3), layout.grid, out[1:])  # 3: bicubic

    def image(self, height: int, width: int) -> VisualLayout:
        """An image alone in its sample: one squashed tile (square), or overview and grid (anyres)."""
        tokens = self.side**2
        if self.mode == "square":
            return VisualLayout("square", height, width, (1, 1), 1, tokens)
        grid = self.best_canvas(height, width)
        crop = _feature_crop(self.side, self.max_tiles, height, width, grid)
        tokens += crop.size[0] * (crop.size[1] + 1)
        return VisualLayout("anyres", height, width, grid, grid[0] * grid[1] + 1, tokens)

    def image_arrays(self, heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tiles and tokens of `image` for many sizes at once. Sizes: integers [N]; returns two int32 [N]."""
        if self.mode == "square":
            return np.ones(len(heights), np.int32), np.full(len(heights), self.side**2, np.int32)
        keys, inverse = np.unique(heights.astype(np.int64) << 32 | widths.astype(np.int64), return_inverse=True)
        height, width = keys >> 32, keys & 0xFFFFFFFF
        grid = self._best_canvases(height, width)
        rows, columns = _kept_features(self.side, self.max_tiles, height, width, grid)
        tiles, tokens = grid[0] * grid[1] + 1, self.side**2 + rows * (columns + 1)
        return tiles[inverse].astype(np.int32), tokens[inverse].astype(np.int32)

    def padded(self, height: int, width: int) -> VisualLayout:
        """One of several images in a sample: padded to a square, one tile, one newline."""
        return VisualLayout("padded", height, width, (1, 1), 1, self.side**2 + 1)

    def video(self, frames: int, height: int, width: int) -> VisualLayout:
        """Frames pooled to about half the side, one newline after the last."""
        return VisualLayout("video", height, width, (frames, 1), frames, frames * self.pooled_side**2 + 1)

    def best_canvas(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of tiles that show most of the image, then waste least; the first of equals."""
        best, most_shown, least_waste = (0, 0), -1, 0
        for rows, columns in self.grid:
            canvas_height, canvas_width = rows * self.tile_size, columns * self.tile_size
            scale = min(canvas_width / width, canvas_height / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            waste = canvas_height * canvas_width - shown
            if shown > most_shown or (shown == most_shown and waste < least_waste):
                best, most_shown, least_waste = (rows, columns), shown, waste
        return best

    def _best_canvases(self, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `best_canvas`, int64 [N] each."""
        best_rows, best_columns, most_shown, least_waste = (np.full(len(height), fill) for fill in (0, 0, -1, 0))
        for rows, columns in self.grid:
            canvas_height, canvas_width = rows * self.tile_size, columns * self.tile_size
            scale = np.minimum(canvas_width / width, canvas_height / height)
            shown = (width * scale).astype(np.int64) * (height * scale).astype(np.int64)
            shown = np.minimum(shown, width * height)
            waste = canvas_height * canvas_width - shown
            better = (shown > most_shown) | ((shown == most_shown) & (waste < least_waste))
            best_rows[better], best_columns[better] = rows, columns
            most_shown, least_waste = np.where(better, shown, most_shown), np.where(better, waste, least_waste)
        return best_rows, best_columns

    def resized(self, layout: VisualLayout) -> tuple[int, int]:
        """(height, width) of an anyres image inside its canvas: the tighter side exact, the other rounded up."""
        height, width = layout.grid[0] * self.tile_size, layout.grid[1] * self.tile_size
        scale_height, scale_width = height / layout.height, width / layout.width
        if scale_width < scale_height:
            return min(math.ceil(layout.height * scale_width), height), width
        return height, min(math.ceil(layout.width * scale_height), width)

    def feature_crop(self, layout: VisualLayout) -> FeatureCrop:
        """How the features of an anyres layout's canvas are unpadded and downscaled."""
        assert layout.kind == "anyres", layout
        return _feature_crop(self.side, self.max_tiles, layout.height, layout.width, layout.grid)


@lru_cache(maxsize=65536)
def _feature_crop(side: int, max_tiles: int, height: int, width: int, grid: tuple[int, int]) -> FeatureCrop:
    rows, columns = side * grid[0], side * grid[1]
    cut_rows = cut_columns = 0
    if width / height > columns / rows:
        cut_rows = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        cut_columns = (columns - int(round(width * (rows / height), 7))) // 2
    kept_rows, kept_columns = rows - 2 * cut_rows, columns - 2 * cut_columns
    ratio = math.sqrt(kept_rows * kept_columns / (max_tiles * side**2))
    size = (kept_rows, kept_columns)
    if ratio > DOWNSCALE_ABOVE:
        size = (int(kept_rows // ratio), int(kept_columns // ratio))
    return FeatureCrop(slice(cut_rows, rows - cut_rows), slice(cut_columns, columns - cut_columns), size)


def _kept_features(
    side: int, max_tiles: int, height: np.ndarray, width: np.ndarray, grid: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """As the size of `_feature_crop`. Its rounding to 7 places guards the quotient that whole numbers give exactly."""
    rows, columns = side * grid[0], side * grid[1]
    wide = width / height > columns / rows
    rows = np.where(wide, rows - (rows - height * columns // width) // 2 * 2, rows)
    columns = np.where(wide, columns, columns - (columns - width * rows // height) // 2 * 2)
    ratio = np.sqrt(rows * columns / (max_tiles * side**2))
    scaled = np.where(ratio > DOWNSCALE_ABOVE, ratio, 1.0)
    return (rows // scaled).astype(np.int64), (columns // scaled).astype(np.int64)
