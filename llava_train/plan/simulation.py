"""A mixture like LLaVA-OneVision's own, drawn at random: sizes of samples without the samples.

Enters: how many, a stage's geometry and video settings. Leaves: `SampleSizes` and the kind of each sample. Meant for
plans before the data are on disk, and for comparing ways of packing.

Shares are those of the published mixture: some 800K replayed single-image and text samples (README of
LLaVA-VL/LLaVA-NeXT), which divide as its single-image stage does (Language 449,995; General 1,136,626; Doc/Chart/Screen
647,138; Math/Reasoning 631,575; General OCR 280,991), 560,430 of several images and 337,367 of video. The published
mixture says no more than that; the sizes below are ours, each with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llava_train.config.schema import VideoConfig
from llava_train.data.packing.packs import SampleSizes
from llava_train.family.base import Geometry, MediumShape, MediumShapes

SEED = 2408_03326
SYSTEM_TOKENS = 11  # of the chat template before the first turn
TURN_TOKENS = 10  # around a question and its answer, their end tokens included
LEAST_SIDE, MOST_SIDE = 28, 6000  # pixels of the longer side


@dataclass(frozen=True)
class Spread:
    """A lognormal distribution: half of the values are below `median`, two thirds within a factor of exp(sigma)."""

    median: float
    sigma: float

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.median * np.exp(self.sigma * rng.standard_normal(count))


@dataclass(frozen=True)
class SampleShape:
    """samples: in the published mixture, for the shares. turns: mean number, geometric. Tokens are those of a turn."""

    samples: float
    turns: float
    question: Spread
    answer: Spread
    side: Spread | None = None  # longer side of a single image, pixels
    aspect: Spread | None = None  # width / height
    images: float = 0.0  # mean number of a sample with several, geometric from 2
    seconds: Spread | None = None  # of a video


REPLAYED = 800_000 / 3_146_325
SAMPLE_SHAPES = {
    # Instructions with answers of a paragraph or several (Magpie, Evol-Instruct).
    "text": SampleShape(449_995 * REPLAYED, 1.2, Spread(60, 0.9), Spread(350, 0.7)),
    # Photographs as COCO keeps them, 640 pixels long at 4:3, and larger ones; conversations and short answers mixed.
    "photograph": SampleShape(
        1_136_626 * REPLAYED, 2.5, Spread(25, 0.6), Spread(35, 1.2), Spread(680, 0.3), Spread(1.2, 0.3)
    ),
    # Pages, charts and screens: larger, upright as often as wide; many short questions about one of them.
    "document": SampleShape(
        647_138 * REPLAYED, 3.0, Spread(25, 0.5), Spread(15, 1.2), Spread(1000, 0.5), Spread(1.0, 0.4)
    ),
    # Drawn figures, small; a long question, and an answer that is a letter or a derivation.
    "mathematics": SampleShape(
        631_575 * REPLAYED, 1.1, Spread(70, 0.6), Spread(90, 1.1), Spread(480, 0.5), Spread(1.2, 0.4)
    ),
    # Text in scenes, single words and lines, which are long and flat.
    "reading": SampleShape(
        280_991 * REPLAYED, 1.3, Spread(25, 0.4), Spread(25, 1.2), Spread(700, 0.7), Spread(1.6, 0.6)
    ),
    # Pairs to compare are the most common; stories and albums reach a dozen and more.
    "several images": SampleShape(560_430, 1.5, Spread(45, 0.7), Spread(40, 1.0), images=3.8),
    # ShareGPT4Video's clips, with captions of a paragraph, are three in four; the others last up to half a minute.
    "video": SampleShape(337_367, 1.2, Spread(40, 0.8), Spread(120, 1.0), seconds=Spread(24, 0.7)),
}


@dataclass(frozen=True)
class Simulation:
    """kinds: positions in `SAMPLE_SHAPES`, int64 [samples]."""

    sizes: SampleSizes
    kinds: np.ndarray


def simulate(num_samples: int, geometry: Geometry, video: VideoConfig, seed: int = SEED) -> Simulation:
    """Samples in the order drawn, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    shares = np.array([kind.samples for kind in SAMPLE_SHAPES.values()])
    kinds = rng.choice(len(SAMPLE_SHAPES), num_samples, p=shares / shares.sum())
    columns = np.zeros((4, num_samples), dtype=np.int32)
    for number, kind in enumerate(SAMPLE_SHAPES.values()):
        rows = np.flatnonzero(kinds == number)
        text, supervised = _text(kind, rng, len(rows))
        tiles, visual = _media(kind, rng, len(rows), geometry, video)
        columns[:, rows] = text + visual, visual, supervised, tiles
    return Simulation(SampleSizes(*columns), kinds)


def _text(kind: SampleShape, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Text tokens with the template's, and those of them that are answers."""
    turns = rng.geometric(1 / kind.turns, count)
    owner = np.repeat(np.arange(count), turns)
    questions, answers = (np.ceil(spread.draw(rng, len(owner))) for spread in (kind.question, kind.answer))
    supervised = np.bincount(owner, weights=answers + 1, minlength=count)  # with the token that ends it
    text = SYSTEM_TOKENS + np.bincount(owner, weights=questions + answers + TURN_TOKENS, minlength=count)
    return text.astype(np.int32), supervised.astype(np.int32)


def _media(
    kind: SampleShape, rng: np.random.Generator, count: int, geometry: Geometry, video: VideoConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles and visual tokens."""
    if kind.side and kind.aspect:
        longer = np.clip(kind.side.draw(rng, count), LEAST_SIDE, MOST_SIDE)
        aspect = kind.aspect.draw(rng, count)
        heights, widths = longer / np.maximum(aspect, 1), longer * np.minimum(aspect, 1)
        tall, wide = (np.maximum(sides, 1).astype(np.int32) for sides in (heights, widths))
        shapes = MediumShapes(np.zeros(count, bool), tall, wide, np.ones(count, np.int32))
        return geometry.counts(np.arange(count), shapes)
    if kind.images:
        images = 1 + rng.geometric(1 / (kind.images - 1), count)
        each = geometry.layouts([MediumShape("image", 1, 1)] * 2)[0]
        return images * each.num_tiles, images * each.num_tokens
    if kind.seconds:
        frames = np.clip(kind.seconds.draw(rng, count) * video.fps, 1, video.max_frames).astype(np.int32)
        ones = np.ones(count, np.int32)
        return geometry.counts(np.arange(count), MediumShapes(ones.astype(bool), ones, ones, frames))
    return np.zeros(count, np.int32), np.zeros(count, np.int32)
