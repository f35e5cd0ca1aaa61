"""Pixels against the golden hashes and transformers' PIL image processor."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava_train.data.image import UnreadableImage, image_size, open_image, to_tiles
from llava_train.family.onevision.geometry import Geometry

GOLDEN = Path(__file__).parents[1] / "golden"
GRID = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
DEMO = Geometry(32, 8, "anyres", ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3)), 9)
LIMIT = 10**8


def golden_image(kind: str, seed: int, width: int, height: int) -> Image.Image:
    """The recipes of tests/golden/README.md."""
    if kind == "noise":
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    elif kind == "ramp":
        y, x = np.mgrid[:height, :width]
        channels = [((x * (3 + c) + y * (5 + 2 * c) + 17 * seed) // 7) % 256 for c in range(3)]
        pixels = np.stack(channels, axis=-1).astype(np.uint8)
    else:
        shape = (math.ceil(height / 16), math.ceil(width / 16), 3)
        blocks = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        y, x = np.mgrid[:height, :width]
        pixels = blocks[y // 16, x // 16]
    return Image.fromarray(pixels)


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "pixels.json").read_text())["cases"], ids=lambda c: f"{c['image']}-{c['mode']}"
)
def test_tiles_equal_golden_hashes(case):
    mode = "square" if case["mode"] == "square" else "anyres"
    geometry = Geometry(384, 14, mode, GRID, 9)
    size = (case["height"], case["width"])
    layout = geometry.padded(*size) if case["mode"] == "pad" else geometry.image(*size)
    tiles = to_tiles(golden_image(case["kind"], case["seed"], case["width"], case["height"]), layout, geometry)
    assert tiles.dtype == np.uint8
    assert list(tiles.shape) == case["shape"]
    assert [sha256(tile) for tile in tiles] == case["sha256_per_tile"]
    assert sha256(tiles) == case["sha256"]


def normalised(tiles: np.ndarray) -> np.ndarray:
    return (tiles.astype(np.float32) / 255 - 0.5) / 0.5


def test_tiles_equal_transformers_on_random_sizes():
    processor = LlavaOnevisionImageProcessorPil(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"height": 32, "width": 32},
        image_grid_pinpoints=DEMO.pinpoints(),
    )
    rng = random.Random(0)
    sizes = [(rng.randint(1, 150), rng.randint(1, 150)) for _ in range(60)]
    for height, width in [*sizes, (1, 1), (64, 64), (3, 400), (400, 3)]:
        image = golden_image("noise", height, width, height)
        expected = processor([image], return_tensors="np")["pixel_values"][0]
        tiles = to_tiles(image, DEMO.image(height, width), DEMO)
        assert np.abs(normalised(tiles) - expected).max() <= 1e-6, (height, width)
        several = processor([[image, image]], return_tensors="np")["pixel_values"][0]
        padded = to_tiles(image, DEMO.padded(height, width), DEMO)
        assert np.abs(normalised(padded) - several).max() <= 1e-6, (height, width)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb_as_pil_converts_it(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    golden_image("noise", 3, 20, 10).convert(mode).save(path)
    assert np.array_equal(np.asarray(open_image(path, LIMIT)), np.asarray(Image.open(path).convert("RGB")))


def test_exif_rotation_is_ignored(tmp_path):
    path = tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    golden_image("blocks", 1, 40, 20).save(path, exif=exif)
    assert image_size(path) == (20, 40)
    assert open_image(path, LIMIT).size == (40, 20)


def test_too_many_pixels_are_refused(tmp_path):
    path = tmp_path / "a.png"
    golden_image("noise", 1, 20, 10).save(path)
    assert open_image(path, 200).size == (20, 10)
    with pytest.raises(UnreadableImage, match=r"20 x 10 pixels, data\.max_pixels is 199"):
        open_image(path, 199)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    golden_image("noise", 1, 200, 100).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match=f"a.{suffix}"):
        open_image(path, LIMIT)


def test_missing_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        image_size(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnreadableImage):
        image_size(tmp_path / "text.png")
