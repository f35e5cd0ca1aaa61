"""A pack by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_train.data.loading.collate import collate, filler
from llava_train.data.samples.encode import EncodedSample
from llava_train.family.base import VisualLayout
from llava_train.family.onevision.geometry import OneVisionGeometry

GEOMETRY = OneVisionGeometry(8, 4, "anyres", ((1, 1),), 9)
VIDEO = VisualLayout("video", 5, 6, (2, 1), 2, 3)
IMAGE = VisualLayout("padded", 5, 6, (1, 1), 1, 2)


def sample(name: str, ids: list[int], labels: list[int], positions: list[int], *visuals: VisualLayout) -> EncodedSample:
    arrays = (np.array(values, dtype=np.int32) for values in (ids, labels, positions))
    return EncodedSample(name, "s", "0", *arrays, visuals)


def tiles(*values: int) -> np.ndarray:
    return (
        np.stack([np.full((3, 8, 8), value, dtype=np.uint8) for value in values])
        if values
        else np.zeros((0, 3, 8, 8), np.uint8)
    )


def test_pack_of_three_documents_by_hand():
    batch = collate(
        [
            sample("a", [9, 9, 9, 1, 2], [-100, -100, -100, 1, 2], [0, 1, 2], VIDEO),
            sample("b", [3, 4], [3, 4], []),
            sample("c", [5, 9, 9, 6], [-100, -100, -100, 6], [1, 2], IMAGE),
        ],
        [tiles(10, 20), tiles(), tiles(30)],
        GEOMETRY.tile_size,
    )
    assert batch.input_ids.tolist() == [9, 9, 9, 1, 2, 3, 4, 5, 9, 9, 6]
    assert batch.labels.tolist() == [-100, -100, -100, 1, 2, -100, 4, -100, -100, -100, 6]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 5, 7, 11]
    assert batch.max_seqlen == 5
    assert batch.visual_positions.tolist() == [0, 1, 2, 8, 9]
    assert batch.visuals == (VIDEO, IMAGE)
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert batch.sample_ids == ("s/a", "s/b", "s/c")
    assert batch.num_supervised == 4
    assert batch.supervised.tolist() == (batch.labels != -100).nonzero().squeeze(1).tolist()
    kinds = {name: value.dtype for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert kinds.pop("cu_seqlens") == torch.int32
    assert kinds.pop("pixel_values") == torch.uint8
    assert set(kinds.values()) == {torch.int64}


def test_filler_supervises_nothing_and_is_of_no_sample():
    batch = filler(GEOMETRY.tile_size)
    assert batch.sample_ids == ()
    assert batch.num_supervised == 0
    assert batch.cu_seqlens.tolist() == [0, 1]
    assert batch.pixel_values.shape == (0, 3, 8, 8)


def test_tiles_that_differ_from_the_layout_are_refused_by_name():
    with pytest.raises(ValueError, match="s/c: 2 visual tokens and 2 tiles, laid out for 2 and 1"):
        collate([sample("c", [5, 9, 9, 6], [-100, -100, -100, 6], [1, 2], IMAGE)], [tiles(1, 2)], GEOMETRY.tile_size)
