"""Closed-form tiles and tokens against the golden tables and transformers' own functions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionConfig
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel, image_size_to_num_patches

from llava_train.config.schema import ImageConfig
from llava_train.family.base import MediumShape, MediumShapes
from llava_train.family.onevision.family import OneVision
from llava_train.family.onevision.geometry import OneVisionGeometry

GOLDEN = Path(__file__).parents[1] / "golden"
GRID_9 = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
DEMO = OneVisionGeometry(32, 8, "anyres", ((1, 1), (1, 2), (2, 1), (2, 2)), 9)


def golden(name: str) -> dict:
    table = json.loads((GOLDEN / name).read_text())
    assert table["cases"]
    return table


def geometry_of(mode: dict) -> OneVisionGeometry:
    tile = mode["tile"]
    grid = tuple((height // tile, width // tile) for height, width in mode["grid_hw"])
    return OneVisionGeometry(tile, tile // mode["side"], "anyres", grid, mode["max_tiles"] or 10**6)


def test_anyres_layout_equals_golden_table():
    table = golden("geometry.json")
    for case in table["cases"]:
        geometry = geometry_of(table["modes"][case["mode"]])
        layout = geometry.image(case["height"], case["width"])
        canvas = (layout.grid[0] * geometry.tile_size, layout.grid[1] * geometry.tile_size)
        assert canvas == (case["best_height"], case["best_width"]), case
        assert (layout.num_tiles, layout.num_tokens) == (case["tiles"], case["tokens"]), case


def test_several_images_and_videos_equal_golden_table():
    geometry = OneVisionGeometry(384, 14, "anyres", GRID_9, 9)
    for case in golden("geometry_multi_video.json")["cases"]:
        if case["mode"] == "video":
            layout = geometry.video(case["frames"], 720, 1280)
            assert (layout.num_tiles, layout.num_tokens) == (case["frames"], case["tokens_total"])
        else:
            layouts = geometry.layouts([MediumShape("image", *side) for side in ((480, 640), (1, 1), (99, 7))])
            assert [layout.num_tokens for layout in layouts] == [case["tokens_per_image"]] * case["n_images"]
            assert [layout.kind for layout in layouts] == ["padded"] * 3


def test_order_of_the_grid_breaks_ties():
    table = golden("geometry_ties.json")
    rows_first = tuple((height // 384, width // 384) for height, width in table["grid_list"])
    transposed = tuple((columns, rows) for rows, columns in rows_first)
    for case in table["cases"]:
        for grid, expected in ((rows_first, case["same_list_read_as_hw"]), (transposed, case["transposed_list"])):
            layout = OneVisionGeometry(384, 14, "anyres", grid, 9).image(case["height"], case["width"])
            assert (layout.grid[0] * 384, layout.grid[1] * 384) == (expected["best_h"], expected["best_w"])
            assert layout.num_tokens == expected["tokens"]


def test_demo_tower_token_counts_by_hand():
    assert DEMO.image(64, 64).num_tokens == 16 + 8 * 9 == 88
    assert DEMO.padded(64, 64).num_tokens == 17
    assert DEMO.video(8, 64, 64).num_tokens == 33
    assert OneVisionGeometry(384, 14, "square", (), 1).image(10, 2000).num_tokens == 729


def test_square_mode_keeps_every_image_square():
    layouts = OneVisionGeometry(32, 8, "square", (), 1).layouts(
        [MediumShape("image", 5, 6), MediumShape("image", 7, 8)]
    )
    assert [(layout.kind, layout.num_tiles, layout.num_tokens) for layout in layouts] == [("square", 1, 16)] * 2


def test_make_geometry_takes_the_grid_in_rows_and_columns():
    geometry = OneVision().geometry(384, 14, ImageConfig("anyres", [[1, 2], [2, 1]], 9))
    assert geometry.pinpoints() == [[384, 768], [768, 384]]


@pytest.mark.parametrize(
    "geometry", [OneVisionGeometry(384, 14, "anyres", GRID_9, 9), DEMO, OneVisionGeometry(32, 8, "anyres", GRID_9, 2)]
)
def test_layout_equals_transformers_on_random_sizes(geometry: OneVisionGeometry):
    """Canvas, tiles, resized size and packed token count by HF's functions; the features are one channel of zeros."""
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": geometry.tile_size,
            "patch_size": geometry.patch_size,
        },
        image_grid_pinpoints=geometry.pinpoints(),
    )
    packer = torch.nn.Module()
    packer.config = config
    rng = random.Random(0)
    scales = (20, 300, 3000)
    sizes = [(rng.randint(1, scale), rng.randint(1, scale)) for scale in scales for _ in range(100)]
    for height, width in [*sizes, (47, 423), (1, 1), (1283, 1070), (1, 3000), (3000, 1)]:
        layout = geometry.image(height, width)
        canvas = select_best_resolution((height, width), geometry.pinpoints())
        assert tuple(side // geometry.tile_size for side in canvas) == layout.grid
        assert image_size_to_num_patches((height, width), geometry.pinpoints(), geometry.tile_size) == layout.num_tiles
        picture = torch.empty(3, 1, 1).expand(3, height, width).numpy()
        assert get_patch_output_size(picture, canvas, "channels_first") == geometry.resized(layout)
        _, (tokens,) = LlavaOnevisionModel.pack_image_features(
            packer,
            [torch.zeros(layout.num_tiles, geometry.side**2, 1)],
            [(height, width)],
            torch.zeros(1),
            f"anyres_max_{geometry.max_tiles}",
        )
        assert tokens == layout.num_tokens, (height, width)


def test_feature_crop_keeps_what_is_not_padding():
    """By hand: 64 x 32 fills the demo's (2, 1); 20 x 100 loses rows of (1, 2) evenly; (2, 2) shrinks to 1 tile."""
    crop = DEMO.feature_crop(DEMO.image(64, 32))
    assert (crop.rows, crop.columns, crop.size) == (slice(0, 8), slice(0, 4), (8, 4))
    wide = DEMO.feature_crop(DEMO.image(20, 100))
    assert (wide.rows, wide.columns, wide.size) == (slice(1, 3), slice(0, 8), (2, 8))
    small = OneVisionGeometry(32, 8, "anyres", ((2, 2),), 1)
    scaled = small.feature_crop(small.image(64, 64))
    assert (scaled.rows, scaled.columns, scaled.size) == (slice(0, 8), slice(0, 8), (4, 4))


def test_arrays_equal_single_images_on_the_golden_sizes():
    table = golden("geometry.json")
    for mode in {case["mode"] for case in table["cases"]}:
        cases = [case for case in table["cases"] if case["mode"] == mode]
        heights, widths = (np.array([case[side] for case in cases]) for side in ("height", "width"))
        tiles, tokens = geometry_of(table["modes"][mode]).image_arrays(heights, widths)
        assert tiles.tolist() == [case["tiles"] for case in cases]
        assert tokens.tolist() == [case["tokens"] for case in cases]


@pytest.mark.parametrize(
    "geometry",
    [
        OneVisionGeometry(384, 14, "anyres", GRID_9, 9),
        OneVisionGeometry(32, 8, "anyres", GRID_9, 2),
        OneVisionGeometry(32, 8, "square", (), 1),
    ],
)
def test_arrays_equal_single_images_on_random_and_extreme_sizes(geometry: OneVisionGeometry):
    """Small, large, long and repeated sizes, and sides in whole ratios, where rounding could differ."""
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 500, 1000)
    heights = np.concatenate([rng.integers(1, 3000, 3000), np.exp(rng.uniform(0, 11, 1000)), geometry.side * factors])
    widths = np.concatenate([rng.integers(1, 3000, 3000), np.exp(rng.uniform(0, 11, 1000)), factors])
    heights, widths = (np.concatenate([sides, sides[:50]]).astype(np.int32) for sides in (heights, widths))
    tiles, tokens = geometry.image_arrays(heights, widths)
    assert tiles.dtype == tokens.dtype == np.int32
    expected = [geometry.image(height, width) for height, width in zip(heights.tolist(), widths.tolist(), strict=True)]
    assert list(zip(tiles.tolist(), tokens.tolist(), strict=True)) == [(e.num_tiles, e.num_tokens) for e in expected]


@pytest.mark.parametrize("mode", ["anyres", "square"])
def test_counts_equal_the_layouts_of_each_sample(mode):
    """Samples of no, one and several media of both kinds, in any order."""
    geometry, rng = OneVisionGeometry(32, 8, mode, GRID_9 if mode == "anyres" else (), 9), np.random.default_rng(1)
    samples = [
        [
            MediumShape("video", *side, int(rng.integers(1, 9))) if rng.random() < 0.3 else MediumShape("image", *side)
            for side in rng.integers(1, 300, (rng.integers(0, 4), 2)).tolist()
        ]
        for _ in range(200)
    ]
    media = [medium for sample in samples for medium in sample]
    owner = np.repeat(np.arange(len(samples)), [len(sample) for sample in samples])
    kinds, heights, widths, frames = zip(*media, strict=True)
    shapes = MediumShapes(np.array(kinds) == "video", *map(np.array, (heights, widths, frames)))
    tiles, tokens = geometry.counts(owner, shapes)
    assert tiles.dtype == tokens.dtype == np.int32
    layouts = [layout for sample in samples for layout in geometry.layouts(sample)]
    assert list(zip(tiles.tolist(), tokens.tolist(), strict=True)) == [(e.num_tiles, e.num_tokens) for e in layouts]
    assert [layout.kind == "video" for layout in layouts] == shapes.is_video.tolist()
