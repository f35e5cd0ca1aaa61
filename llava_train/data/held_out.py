"""Which samples of a stage it does not train on: a pure function of seed and content, the same on every rank."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from llava_train.config.errors import ConfigError, Fault
from llava_train.data.index import Index
from llava_train.data.sample import Sample


def held_out_samples(index: Index, held_out: float, seed: int, root: Path, stage_name: str) -> np.ndarray:
    """bool [samples], true where held out: from 1 on `held_out` is their number, below a share of all, at least one.

    Samples about the same images and videos, or of one text where there are none, go together, so that several
    questions about a picture are all held out or none is; the last such group may exceed the number. The draw is by a
    hash of what they have in common, with paths below `root`: it changes neither with the order of samples nor by
    adding some. Raises ConfigError where none is left.
    Worked case: 2 of five samples, in the order of their hashes a b b b c -> a b b b.
    """
    num_samples = len(index.sizes.lengths)
    wanted = held_out if held_out >= 1 else max(1, round(held_out * num_samples))
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for position in range(num_samples):
        groups[_draw(index.sample(position)[0], seed, root)].append(position)
    held = np.zeros(num_samples, dtype=bool)
    for draw in sorted(groups):
        if held.sum() >= wanted:
            return held
        held[groups[draw]] = True
    told = f"{held_out:g} takes all {num_samples} samples of stage {stage_name}"
    raise ConfigError([Fault("evaluation.held_out", told, "hold out fewer, or name a file: evaluation.file=FILE")])


def _draw(sample: Sample, seed: int, root: Path) -> bytes:
    media = [path.relative_to(root) if path.is_relative_to(root) else path for path in (*sample.images, *sample.videos)]
    common = sorted(map(str, media)) or [turn.text for turn in sample.turns]
    return hashlib.sha256(repr((seed, common)).encode()).digest()
