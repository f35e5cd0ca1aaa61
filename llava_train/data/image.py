"""Images: sizes from headers, and RGB pixels in tiles bit-equal to transformers' PIL image processor.

Enters: a file and its `VisualLayout`. Leaves: uint8 [tiles, 3, S, S], overview first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from llava_train.batch.packed import VisualLayout
from llava_train.family.onevision.geometry import Geometry

PADDING = 127  # int(0.5 * 255): the image mean, by which transformers' pad_to_square fills
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow's readers raise


class UnreadableImage(ValueError):
    """A file that is no whole image, or one beyond the pixel limit."""


def image_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """(height, width) as stored, from the header alone: an EXIF rotation is ignored, as in training of the original.

    Raises FileNotFoundError, UnreadableImage.
    """
    with _open(path, max_pixels) as image:
        return image.height, image.width


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """The decoded image in RGB. Raises FileNotFoundError, UnreadableImage (a truncated file too)."""
    with _open(path, max_pixels) as image:
        try:
            return image.convert("RGB")
        except UNREADABLE as error:
            raise UnreadableImage(f"{path}: {error}") from error


def _open(path: Path, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except UNREADABLE as error:
        raise UnreadableImage(f"{path}: {error}") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise UnreadableImage(f"{path}: {image.width} x {image.height} pixels, data.max_pixels is {max_pixels}")
    return image


def to_tiles(image: Image.Image, layout: VisualLayout, geometry: Geometry) -> np.ndarray:
    """uint8 [layout.num_tiles, 3, S, S] of an RGB image of the layout's size."""
    assert (image.height, image.width) == (layout.height, layout.width), (image.size, layout)
    if layout.kind == "padded":
        image = _pad_to_square(image)
    tiles = [to_square(image, geometry.tile_size)]
    if layout.kind == "anyres":
        tiles += _grid_tiles(image, layout, geometry)
    return np.stack(tiles)


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [3, size, size], squashed: the aspect ratio is lost."""
    return _channels_first(image.resize((size, size), Image.Resampling.BICUBIC))


def _grid_tiles(image: Image.Image, layout: VisualLayout, geometry: Geometry) -> list[np.ndarray]:
    """The image fitted into its canvas, centred on black, cut row by row."""
    size, (rows, columns) = geometry.tile_size, layout.grid
    height, width = geometry.resized(layout)
    canvas = Image.new("RGB", (columns * size, rows * size))
    fitted = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(fitted, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    pixels = _channels_first(canvas)
    return [
        pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(rows)
        for column in range(columns)
    ]


def _pad_to_square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), (PADDING,) * 3)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)
