"""Sizes of a stage's samples, for the figures of a preview: of all of them, or of a part that stands for an epoch.

Enters: a `Preview`. Leaves: a `Survey`; samples to be shown are handed on as they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np

from llava_train.config.sampling import parse_sampling
from llava_train.data.preview.samples import Preview, Shown
from llava_train.data.samples.encode import EncodedSample
from llava_train.family.base import VisualLayout
from llava_train.records.readers.open import open_source
from llava_train.shared.errors import DataError

SampleKind = Literal["text", "image", "multi-image", "video", "refused"]
SAMPLE_KINDS: tuple[SampleKind, ...] = ("text", "image", "multi-image", "video", "refused")
MEASURED = 1000  # samples of a stage that are measured where it has more
POOL = 4000  # samples that steps are drawn from, there
REFUSED = 50  # samples of a stage that are shown as refused, beside those that would be shown anyway


@dataclass(frozen=True)
class Size:
    """One sample: tokens with visual ones, those two kinds of them, tiles."""

    name: str
    source: str
    kind: SampleKind
    tokens: int
    visual: int
    supervised: int
    tiles: int


@dataclass
class Survey:
    """By source: draws of an epoch, samples measured, shown and refused. `sizes`: of those measured and not refused."""

    draws: dict[str, int]
    records: dict[str, int]
    sizes: list[Size] = field(default_factory=list)
    measured: Counter[str] = field(default_factory=Counter)
    shown: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def is_whole(self) -> bool:
        """Whether every sample of the stage was measured."""
        return all(self.measured[name] == count for name, count in self.records.items())

    def weights(self) -> np.ndarray:
        """float64 [sizes]: draws of an epoch that each measured sample stands for."""
        share = {name: self.draws[name] / count for name, count in self.measured.items()}
        return np.array([share[size.source] for size in self.sizes])

    def pool(self, seed: int) -> np.ndarray:
        """Positions in `sizes` that steps draw from: an epoch's, as training has them, where all were measured, else
        POOL of them by their weights."""
        weights = self.weights()
        if self.is_whole:
            return np.repeat(np.arange(len(weights)), weights.astype(np.int64))
        return np.random.default_rng(seed).choice(len(weights), POOL, p=weights / weights.sum())


def survey(preview: Preview, count: int, show: Callable[[Shown], None]) -> Survey:
    """Measures a stage. `show` is given the first `count` samples of each source, with pixels, all if 0, and others
    that are refused."""
    records = {
        name: parse_sampling(source.sampling).size(open_source(source.file, name).count())
        for name, source in preview.sources.items()
    }
    found = Survey({name: records[name] * source.repeat for name, source in preview.sources.items()}, records)
    num_draws = max(sum(found.draws.values()), 1)
    for name in preview.sources:
        quota = max(count, round(MEASURED * found.draws[name] / num_draws)) if count else records[name]
        for shown in islice(preview.of_source(name, decoded=count or None), quota):
            _count(found, shown)
            is_refused = isinstance(shown.result, DataError)
            if not count or found.measured[name] <= count or (is_refused and found.refused.total() <= REFUSED):
                found.shown[name] += 1
                show(shown)
    return found


def _count(found: Survey, shown: Shown) -> None:
    found.measured[shown.source] += 1
    if isinstance(shown.result, DataError):
        found.refused[shown.source] += 1
        return
    found.sizes.append(_size(shown.source, shown.result))


def _size(source: str, encoded: EncodedSample) -> Size:
    visual = len(encoded.visual_positions)
    kind = sample_kind(encoded.visuals)
    counts = (len(encoded.input_ids), visual, encoded.num_supervised, encoded.num_tiles)
    return Size(f"{source}/{encoded.id}", source, kind, *counts)


def sample_kind(visuals: tuple[VisualLayout, ...]) -> SampleKind:
    if not visuals:
        return "text"
    if any(layout.kind == "video" for layout in visuals):
        return "video"
    return "image" if len(visuals) == 1 else "multi-image"
