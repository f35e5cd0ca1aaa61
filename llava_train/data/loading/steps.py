"""Steps as a map-style dataset: item `step` holds this rank's micro-batches of that optimiser step, decoded.

A pure function of (seed, stage, step), so a resumed run, another number of workers or of ranks sees the same samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava_train.batch.packed import PackedBatch
from llava_train.data.index.stage_samples import StageSamples
from llava_train.data.loading.collate import collate, filler
from llava_train.data.media.sample_media import MediaReader
from llava_train.data.packing.order import Order
from llava_train.data.packing.packs import SampleSizes
from llava_train.data.samples.encode import EncodedSample, Encoder
from llava_train.shared.errors import DataError


@dataclass(frozen=True)
class StepBatches:
    """`batches`: this rank's micro-batches, as many as on every rank. `skipped`: samples that decoding refused.

    order: a number made of the packs of all ranks, the same on every one of them that has the same samples.
    """

    step: int
    epoch: int
    order: int
    batches: list[PackedBatch]
    skipped: list[DataError]

    def pin_memory(self) -> StepBatches:
        """For a DataLoader that feeds a GPU: copies from pinned memory go on beside the step."""
        return _mapped(to_tensors(self), torch.Tensor, torch.Tensor.pin_memory)


class StepDataset(Dataset):
    """`draws`: positions in the samples that `order` goes through, int64 [draws of an epoch]."""

    def __init__(
        self,
        samples: StageSamples,
        draws: np.ndarray,
        encoder: Encoder,
        media: MediaReader,
        order: Order,
        rank: int,
        world_size: int,
    ):
        self._samples, self._draws, self._order = samples, draws, order
        self._encoder, self._media = encoder, media
        self._rank, self._world_size = rank, world_size

    @property
    def sizes(self) -> SampleSizes:
        """Of the draws."""
        return self._samples.sizes[self._draws]

    def name_of(self, draw: int) -> str:
        return self._samples.name_of(int(self._draws[draw]))

    def __getitem__(self, step: int) -> StepBatches:
        ranks = self._order.packs(step, self._world_size)
        skipped: list[DataError] = []
        batches = [self._pack_of([int(self._draws[i]) for i in pack], skipped) for pack in ranks[self._rank]]
        return StepBatches(step, self._order.epoch(step), zlib.crc32(repr(ranks).encode()), batches, skipped)

    def _pack_of(self, positions: Sequence[int], skipped: list[DataError]) -> PackedBatch:
        """A sample that decoding refuses leaves its place empty and goes to `skipped`."""
        encoded: list[EncodedSample] = []
        tiles: list[np.ndarray] = []
        for position in positions:
            sample, layouts = self._samples.sample(position)
            try:
                pixels = self._media.tiles(sample, layouts)
            except DataError as error:
                skipped.append(error)
                continue
            encoded.append(self._encoder.encode(sample, layouts))
            tiles.append(pixels)
        size = self._media.geometry.tile_size
        return collate(encoded, tiles, size) if encoded else filler(size)


def to_arrays(item: StepBatches) -> StepBatches:
    """With arrays in place of tensors: these cross from a worker through a pipe, not through shared memory files."""
    return _mapped(item, torch.Tensor, torch.Tensor.numpy)


def to_tensors(item: StepBatches) -> StepBatches:
    """Undoes `to_arrays`."""
    return _mapped(item, np.ndarray, torch.from_numpy)


def _mapped(item: StepBatches, kind: type, convert: Any) -> StepBatches:
    batches = [
        replace(batch, **{name: convert(value) for name, value in vars(batch).items() if isinstance(value, kind)})
        for batch in item.batches
    ]
    return replace(item, batches=batches)
