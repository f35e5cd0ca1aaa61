"""Pixels against the golden hashes and transformers' PIL image processor."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from onevision_reference import tiles_of
from PIL import Image
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava_train.data.media.image import UnreadableImage, image_size, open_image
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.records.media_file import PackedFile

GOLDEN = Path(__file__).parents[2] / "golden"
GRID = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
DEMO = OneVisionGeometry(32, 8, "anyres", ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3)), 9)
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
    geometry = OneVisionGeometry(384, 14, mode, GRID, 9)
    size = (case["height"], case["width"])
    layout = geometry.padded(*size) if case["mode"] == "pad" else geometry.image(*size)
    tiles = tiles_of(golden_image(case["kind"], case["seed"], case["width"], case["height"]), layout, geometry)
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
        tiles = tiles_of(image, DEMO.image(height, width), DEMO)
        assert np.abs(normalised(tiles) - expected).max() <= 1e-6, (height, width)
        several = processor([[image, image]], return_tensors="np")["pixel_values"][0]
        padded = tiles_of(image, DEMO.padded(height, width), DEMO)
        assert np.abs(normalised(padded) - several).max() <= 1e-6, (height, width)


@pytest.mark.parametrize("size", [(1, 10000), (10000, 1)])
def test_extreme_sizes_fill_their_tiles(size):
    image = golden_image("noise", 1, *size[::-1])
    layout = DEMO.image(*size)
    assert tiles_of(image, layout, DEMO).shape == (layout.num_tiles, 3, 32, 32)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, content: bytes, *, before=(), behind=()) -> bytes:
    """A PNG of any kind; `content`: its rows, each with a leading 0; more chunks before and behind these."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        *before,
        (b"IDAT", zlib.compress(content)),
        *behind,
    ]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


NOISE = golden_image("noise", 3, 40, 20)
PALETTE = NOISE.convert("P")


@pytest.mark.parametrize(
    ("image", "format", "options"),
    [
        (NOISE, "JPEG", {}),
        (NOISE, "JPEG", {"progressive": True}),
        (NOISE.convert("L"), "JPEG", {}),
        (NOISE.convert("CMYK"), "JPEG", {}),
        (NOISE.convert("CMYK"), "TIFF", {}),
        (NOISE.convert("RGBA").rotate(30), "PNG", {}),
        (NOISE.convert("LA"), "PNG", {}),
        (NOISE.convert("1"), "PNG", {}),
        (PALETTE, "PNG", {}),
        (PALETTE, "PNG", {"transparency": 3}),
        (PALETTE, "PNG", {"transparency": bytes(range(256))}),
        (PALETTE, "GIF", {"transparency": 3}),
        (NOISE.convert("RGBA").rotate(30), "WEBP", {}),
        (NOISE, "BMP", {}),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value)[:20],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_images_become_rgb_as_pillow_converts_them(placed, image, format, options):
    content = encoded(image, format, **options)
    file = placed("a.jpg", content)  # whatever the name says
    assert image_size(file) == (20, 40)
    assert np.array_equal(
        np.asarray(open_image(file, LIMIT)), np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    )


LARGE = zlib.compress(bytes(3 * 2**20))
TEXTS = {
    "text": (b"zTXt", b"Comment\0\0" + LARGE),
    "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "profile": (b"iCCP", b"profile\0\0" + LARGE),
    "plain text": (b"tEXt", b"Comment\0" + b"a" * (65 * 2**20)),
}


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("text", TEXTS)
def test_large_texts_and_profiles_of_a_png_are_passed_over(text, where):
    pixels = np.asarray(NOISE)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    content = png(40, 20, 8, 2, rows, **{where: [TEXTS[text]]})
    file = PackedFile(Path(), 0, len(content), "a.png", content)
    assert image_size(file) == (20, 40)
    assert np.array_equal(np.asarray(open_image(file, LIMIT)), pixels)
    cut = file._replace(content=content[: content.index(b"IDAT") + 40])
    with pytest.raises(UnreadableImage, match=r"a\.png.*truncated"):
        open_image(cut, LIMIT)


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_animation_gives_its_first_frame(placed, format):
    others = [Image.new("RGB", (40, 20), "red"), Image.new("RGB", (40, 20), "lime")]
    blue = Image.new("RGB", (40, 20), "blue")
    file = placed("a." + format, encoded(blue, format, save_all=True, append_images=others, lossless=True))
    assert np.array_equal(np.asarray(open_image(file, LIMIT)), np.asarray(blue))


def test_sixteen_bits_keep_their_high_byte(placed):
    grey = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    expected = np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    big = grey.astype(">u2")
    contents = [
        encoded(Image.fromarray(grey), "PNG"),
        encoded(Image.fromarray(grey), "TIFF"),
        png(32, 16, 16, 2, b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in big)),  # red, green, blue
    ]
    for number, content in enumerate(contents):
        assert np.array_equal(np.asarray(open_image(placed(f"{number}.png", content), LIMIT)), expected)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_stated_range_are_refused(placed, kind):
    content = encoded(Image.fromarray(np.ones((4, 4), dtype=kind)), "TIFF")
    with pytest.raises(UnreadableImage, match=r"a\.tif.*no stated range: save it in 8 or 16 bits"):
        open_image(placed("a.tif", content), LIMIT)


def test_exif_rotation_is_ignored(placed):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = placed("rotated.jpg", encoded(NOISE, "JPEG", exif=exif))
    assert image_size(file) == (20, 40)
    assert open_image(file, LIMIT).size == (40, 20)


def test_too_many_pixels_are_refused_by_the_limit_of_the_data_alone(placed, recwarn):
    file = placed("a.png", png(50000, 50000, 8, 0, b""))
    assert image_size(file) == (50000, 50000)
    with pytest.raises(UnreadableImage, match=r"a\.png.*50000 x 50000 pixels, data\.max_pixels is 2499999999"):
        open_image(file, 2_499_999_999)
    assert not recwarn.list
    assert open_image(placed("b.png", encoded(NOISE, "PNG")), 800).size == (40, 20)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.5, 0.98])
def test_truncated_image_is_refused(placed, format, part):
    content = encoded(golden_image("noise", 1, 200, 100), format)
    with pytest.raises(UnreadableImage, match=r"^a\.img|/a\.img"):
        open_image(placed("a.img", content[: int(part * len(content))]), LIMIT)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'/>",
        b"%PDF-1.4\n%%EOF\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n",
        encoded(NOISE, "PPM"),
    ],
    ids=["empty", "text", "svg", "pdf", "eps", "ppm"],
)
def test_what_is_no_image_is_refused_by_its_content(placed, content):
    for read in (image_size, lambda file: open_image(file, LIMIT)):
        with pytest.raises(UnreadableImage, match=r"a\.jpg.*is no JPEG, PNG, WEBP, GIF, BMP, TIFF by its content"):
            read(placed("a.jpg", content))


def test_what_is_no_file_is_missing(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opened, it would wait for a writer
    for name in ("none.png", "pipe.png", "."):
        with pytest.raises(FileNotFoundError, match="no such file"):
            image_size(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"1\.png in .*none\.tar: no such file"):
        image_size(PackedFile(tmp_path / "none.tar", 0, 9, "1.png"))
    for there, asked in (("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")):
        (tmp_path / f"{len(there)}/{there}").mkdir(parents=True)
        (tmp_path / f"{len(there)}/{there}/{asked}.png").write_bytes(b"")
        with pytest.raises(FileNotFoundError) as caught:
            image_size(tmp_path / f"{len(there)}/{asked}/{asked}.png")
        assert f"there is {str(tmp_path / f'{len(there)}/{there}/{asked}.png')!a}, which is" in str(caught.value)
    with pytest.raises(UnreadableImage, match="File name too long"):
        image_size(tmp_path / ("a" * 300))


def test_slice_beyond_the_end_of_its_file_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(encoded(NOISE, "PNG"))
    with pytest.raises(UnreadableImage, match=r"1\.png in .*a\.tar ends before it does"):
        image_size(PackedFile(tmp_path / "a.tar", 10, 10_000, "1.png"))


def test_a_folder_or_a_pipe_in_place_of_an_image_is_told(tmp_path):
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    for name, told in {"a.png": "no such file; it is a folder", "b.png": "it is a pipe, socket or device"}.items():
        with pytest.raises(FileNotFoundError, match=told):
            image_size(tmp_path / name)
