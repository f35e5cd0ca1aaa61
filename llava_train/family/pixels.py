"""From an RGB image to uint8 tiles, bit-equal to transformers' image processors on Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from PIL import Image


def squash(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [3, size, size]; the aspect ratio is lost."""
    return np.stack(list(_planes(image.resize((size, size), Image.Resampling.BICUBIC))))


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The image centred on a square of its longer side."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def cut_canvas(fitted: Image.Image, grid: tuple[int, int], out: np.ndarray) -> None:
    """Fills `out`, uint8 [rows * columns, 3, S, S], row by row, from a canvas with `fitted` centred on black."""
    size, (rows, columns) = out.shape[-1], grid
    top, left = (rows * size - fitted.height) // 2, (columns * size - fitted.width) // 2
    if fitted.size != (columns * size, rows * size):
        out[:] = 0
    for channel, plane in enumerate(_planes(fitted)):
        for tile, (row, column) in enumerate(product(range(rows), range(columns))):
            y, x = row * size - top, column * size - left  # of the tile in the fitted image
            shown = plane[max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)]
            height, width = shown.shape
            out[tile, channel, max(-y, 0) :, max(-x, 0) :][:height, :width] = shown


def _planes(image: Image.Image) -> Iterator[np.ndarray]:
    """Red, green and blue, uint8 [height, width] each: Pillow sorts pixels out faster than NumPy."""
    for name in "RGB":
        yield np.frombuffer(image.tobytes("raw", name), dtype=np.uint8).reshape(image.height, image.width)
