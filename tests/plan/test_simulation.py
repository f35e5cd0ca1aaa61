"""The simulated mixture: its shares, its reasons in figures, and the same samples each time."""

from __future__ import annotations

import numpy as np
import pytest

from llava_train.config.schema import VideoConfig
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.plan.simulation import SAMPLE_SHAPES, Simulation, simulate

GRID = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))


@pytest.fixture(scope="module")
def drawn() -> Simulation:
    return simulate(20_000, OneVisionGeometry(384, 14, "anyres", GRID, 9), VideoConfig(1.0, 32))


def of(drawn: Simulation, kind: str) -> np.ndarray:
    return np.flatnonzero(drawn.kinds == list(SAMPLE_SHAPES).index(kind))


def test_shares_are_those_of_the_published_mixture(drawn):
    """800K replayed, 560,430 of several images, 337,367 of video."""
    total = 800_000 + 560_430 + 337_367
    assert len(of(drawn, "several images")) / 20_000 == pytest.approx(560_430 / total, abs=0.01)
    assert len(of(drawn, "video")) / 20_000 == pytest.approx(337_367 / total, abs=0.01)
    assert len(of(drawn, "text")) / 20_000 == pytest.approx(800_000 * 449_995 / 3_146_325 / total, abs=0.01)


def test_visual_tokens_are_those_of_the_geometry(drawn):
    visual, tiles = drawn.sizes.visual, drawn.sizes.tiles
    several, video, photographs = (of(drawn, kind) for kind in ("several images", "video", "photograph"))
    assert (visual[several] == 730 * tiles[several]).all()
    assert tiles[several].min() == 2
    assert (visual[video] == 196 * tiles[video] + 1).all()
    assert tiles[video].max() == 32
    assert visual[photographs].min() >= 729 + 28
    assert visual[photographs].max() <= 8765
    assert not visual[of(drawn, "text")].any()


def test_every_sample_has_text_around_what_it_supervises(drawn):
    text = drawn.sizes.lengths - drawn.sizes.visual
    assert drawn.sizes.supervised.min() >= 1
    assert (text > drawn.sizes.supervised).all()


def test_the_same_samples_come_each_time(drawn):
    again = simulate(20_000, OneVisionGeometry(384, 14, "anyres", GRID, 9), VideoConfig(1.0, 32))
    other = simulate(20_000, OneVisionGeometry(384, 14, "anyres", GRID, 9), VideoConfig(1.0, 32), seed=1)
    assert (again.sizes.lengths == drawn.sizes.lengths).all()
    assert (other.sizes.lengths != drawn.sizes.lengths).any()
