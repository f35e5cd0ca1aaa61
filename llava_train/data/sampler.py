"""The order of samples: a pure function of (seed, stage, step), the same for any number of ranks and workers."""

from __future__ import annotations

import zlib
from typing import Protocol

import numpy as np


class Order(Protocol):
    steps_per_epoch: int

    def epoch(self, step: int) -> int: ...

    def positions(self, step: int) -> np.ndarray: ...


class StepOrder:
    """Which samples a step draws. An epoch is a permutation of all of them, cut into steps; the last may be smaller."""

    def __init__(self, num_samples: int, global_batch_size: int, seed: int, stage_name: str):
        assert num_samples > 0, stage_name
        self._num_samples, self._batch_size = num_samples, global_batch_size
        self._key = (seed, zlib.crc32(stage_name.encode()))
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)
        self.steps_per_epoch = -(-num_samples // global_batch_size)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def positions(self, step: int) -> np.ndarray:
        """int64 [global_batch_size, or fewer at the end of an epoch], positions of the step's samples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([*self._key, epoch]).permutation(self._num_samples)
        return self._permutation[place * self._batch_size : (place + 1) * self._batch_size]


class FileOrder:
    """All samples as they come, once, `batch_size` at a time."""

    def __init__(self, num_samples: int, batch_size: int):
        self._num_samples, self._batch_size = num_samples, batch_size
        self.steps_per_epoch = -(-num_samples // batch_size)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def positions(self, step: int) -> np.ndarray:
        return np.arange(self._num_samples)[step * self._batch_size : (step + 1) * self._batch_size]
