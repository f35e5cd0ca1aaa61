"""Which samples of a stage it does not train on: a pure function of seed and content, the same on every rank."""

from __future__ import annotations

import numpy as np

from llava_train.config.errors import ConfigError, Fault


def held_out_samples(content: np.ndarray, held_out: float, seed: int, stage_name: str) -> np.ndarray:
    """bool [samples], true where held out: from 1 on `held_out` is their number, below a share of all, at least one.

    content: uint64 [samples], equal for samples about the same images and videos, or of one text where there are none.
    These go together, so that several questions about a picture are all held out or none is; the last such group may
    exceed the number. The draw changes neither with the order of samples nor by adding some. Raises ConfigError where
    none is left.
    Worked case: 2 of five samples, in the order of their draws a b b b c -> a b b b.
    """
    num_samples = len(content)
    wanted = held_out if held_out >= 1 else max(1, round(held_out * num_samples))
    groups, group, sizes = np.unique(
        _mixed(content ^ _mixed(np.array([seed], np.uint64))), return_inverse=True, return_counts=True
    )
    num_groups = int(np.searchsorted(np.cumsum(sizes), wanted)) + 1
    if num_groups >= len(groups):
        told = f"{held_out:g} takes all {num_samples} samples of stage {stage_name}"
        raise ConfigError([Fault("evaluation.held_out", told, "hold out fewer, or name a file: evaluation.file=FILE")])
    return group < num_groups


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits without visible pattern: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
