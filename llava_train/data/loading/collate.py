"""Encoded samples of one pack, end to end as a `PackedBatch`. Document boundaries are written here, nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from llava_train.batch.packed import IGNORE_INDEX, PackedBatch
from llava_train.data.samples.encode import EncodedSample

FILLER = "filler"


def collate(encoded: Sequence[EncodedSample], tiles: Sequence[np.ndarray], tile_size: int) -> PackedBatch:
    """`tiles[i]`: uint8 [n, 3, tile_size, tile_size] of sample i.

    Raises ValueError, by name, where tiles, tokens and layouts differ.

    Worked case, labels [7 8 9] and [5 6] -> [-100 8 9 -100 6], cu_seqlens [0 3 5], position_ids [0 1 2 0 1].
    """
    for sample, pixels in zip(encoded, tiles, strict=True):
        _check(sample, pixels)
    lengths = [len(sample.input_ids) for sample in encoded]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.concatenate([sample.labels for sample in encoded])
    labels[starts[:-1]] = IGNORE_INDEX
    positions = [sample.visual_positions + start for sample, start in zip(encoded, starts[:-1], strict=True)]
    return PackedBatch(
        input_ids=_int64(np.concatenate([sample.input_ids for sample in encoded])),
        labels=_int64(labels),
        supervised=_int64(np.flatnonzero(labels != IGNORE_INDEX)),
        position_ids=_int64(np.concatenate([np.arange(length) for length in lengths])),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        max_seqlen=max(lengths),
        pixel_values=torch.from_numpy(np.concatenate([_no_tiles(tile_size), *tiles])),
        visual_positions=_int64(np.concatenate(positions)),
        visuals=tuple(layout for sample in encoded for layout in sample.visuals),
        sample_ids=tuple(f"{sample.source}/{sample.id}" for sample in encoded),
    )


def filler(tile_size: int) -> PackedBatch:
    """One text token of no sample, nothing supervised, no tiles: what a rank short of packs runs."""
    nothing, token = np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int32)
    sample = EncodedSample(FILLER, FILLER, FILLER, token, np.full(1, IGNORE_INDEX, dtype=np.int32), nothing, ())
    batch = collate([sample], [_no_tiles(tile_size)], tile_size)
    return replace(batch, sample_ids=())


def _no_tiles(size: int) -> np.ndarray:
    return np.zeros((0, 3, size, size), dtype=np.uint8)


def _check(sample: EncodedSample, pixels: np.ndarray) -> None:
    num_tokens = sum(layout.num_tokens for layout in sample.visuals)
    if len(sample.visual_positions) != num_tokens or len(pixels) != sample.num_tiles:
        found = f"{len(sample.visual_positions)} visual tokens and {len(pixels)} tiles"
        raise ValueError(f"{sample.source}/{sample.id}: {found}, laid out for {num_tokens} and {sample.num_tiles}")


def _int64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))
