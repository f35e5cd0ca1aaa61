"""Which samples of a stage it does not train on: a pure function of seed and content, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llava_train.shared.errors import ConfigError


class Pictures(NamedTuple):
    """What tells the media of one source apart. text: uint64 [records], of samples without media by their turns. The
    rest is by medium, in reading order, from starts[record] on.

    key: uint64, by the path as it is written below the data root, of media inside of records by their bytes. place:
    uint64, by the resolved path, 0 inside of records. size: int64, bytes, -1 where it is not known. digest: uint64, by
    the bytes, 0 where these were not read.
    """

    text: np.ndarray
    starts: np.ndarray
    key: np.ndarray
    place: np.ndarray
    size: np.ndarray
    digest: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def stored(self) -> dict[str, np.ndarray]:
        """What an index does not hold."""
        return {name: getattr(self, name) for name in ("text", "key", "place", "size", "digest")}


def unhashed(sources: Sequence[Pictures]) -> list[np.ndarray]:
    """bool [media] of each source: whose bytes must be hashed before `same_content` can tell which media are equal.

    Those inside of records, and files of as many bytes, the same height and the same width as another.
    """
    size, height, width, place, key, digest = (
        np.concatenate([getattr(source, name) for source in sources])
        for name in ("size", "height", "width", "place", "key", "digest")
    )
    shape = _mixed(size.astype(np.uint64)) ^ _mixed(
        (height.astype(np.uint64) << np.uint64(32)) | width.astype(np.uint64)
    )
    shapes, group = np.unique(shape, return_inverse=True)
    order = np.lexsort((place, group))
    others = (np.diff(group[order]) == 0) & (place[order][1:] != place[order][:-1])
    shared = np.zeros(len(shapes), bool)
    shared[group[order][1:][others]] = True
    wanted = (digest == 0) & ((key == 0) | (shared[group] & (size >= 0)))
    return np.split(wanted, np.cumsum([len(source.key) for source in sources])[:-1])


def same_content(sources: Sequence[Pictures]) -> list[np.ndarray]:
    """uint64 [records] of each source, equal for samples that share a picture or film, also by way of others that do;
    without media, for those of the same text.

    Worked case: samples of pictures a, ab, b, c -> x x x y, where x is the lesser key of a and b.
    """
    key, place, digest = (np.concatenate([getattr(s, name) for s in sources]) for name in ("key", "place", "digest"))
    counts = np.concatenate([np.diff(source.starts) for source in sources])
    owner = np.repeat(np.arange(len(counts)), counts)
    places, picture = np.unique(np.where(digest == 0, place, digest), return_inverse=True)
    content = np.where(counts == 0, np.concatenate([source.text for source in sources]), np.iinfo(np.uint64).max)
    before, least = None, np.full(len(places), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, picture, key)
    while before is None or not np.array_equal(before, least):
        before = least.copy()
        np.minimum.at(content, owner, least[picture])
        np.minimum.at(least, picture, content[owner])
    return np.split(content, np.cumsum([len(source.text) for source in sources])[:-1])


def held_out_samples(content: np.ndarray, held_out: float, seed: int, stage_name: str) -> np.ndarray:
    """bool [samples], true where held out: from 1 on `held_out` is their number, below a share of all, at least one.

    content: uint64 [samples], equal for samples that go together (see `same_content`): all are held out or none is, so
    the last such group may exceed the number. A group that is larger than the number is passed over where others are
    not. The draw changes neither with the order of samples nor by adding some. Raises ConfigError where none is left.
    Worked case: of five samples, in the order of their draws a b b b c, 3 -> a b b b, 2 -> a c.
    """
    num_samples = len(content)
    wanted = held_out if held_out >= 1 else max(1, round(held_out * num_samples))
    groups, group, sizes = np.unique(
        _mixed(content ^ _mixed(np.array([seed], np.uint64))), return_inverse=True, return_counts=True
    )
    fitting = np.flatnonzero(sizes <= wanted)
    drawn = fitting[: int(np.searchsorted(np.cumsum(sizes[fitting]), wanted)) + 1] if len(fitting) else np.zeros(1, int)
    if len(drawn) == len(groups):
        told = f"{held_out:g} takes all {num_samples} samples of stage {stage_name}"
        raise ConfigError.one("evaluation.held_out", told, "hold out fewer, or name a file: evaluation.file=FILE")
    return np.isin(group, drawn)


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits without visible pattern: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
