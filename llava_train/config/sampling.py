"""Which records of a source a mixture takes: `all`, `first:N`, `last:N` (or `end:N`), `random:N`; N a count or N%."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

_AMOUNT = re.compile(r"(\d+)|(\d+(?:\.\d+)?)%")
_ALLOWED = "all, first:N, last:N, random:N, N a count such as 500 or a percentage such as 10%"


@dataclass(frozen=True)
class Sampling:
    """One of count and percent is set, none for `all`."""

    kind: Literal["all", "first", "last", "random"]
    count: int | None = None
    percent: Decimal | None = None

    def size(self, num_records: int) -> int:
        """Records taken of `num_records`; percentages round up, as in LLaVA-VL/LLaVA-NeXT, `train.py` (b42941c)."""
        if self.count is not None:
            return min(self.count, num_records)
        if self.percent is not None:
            return min(math.ceil(self.percent * num_records / 100), num_records)
        return num_records

    def select(self, num_records: int, rng_key: tuple[int, str]) -> Sequence[int]:
        """Positions taken, ascending. `random` depends on `rng_key` (seed, source name) alone: ranks agree.

        Worked case: `last:33%` of 10 records takes ceil(3.3) = 4: 6 to 9.
        """
        size = self.size(num_records)
        if self.kind == "last":
            return range(num_records - size, num_records)
        if self.kind == "random":
            from numpy.random import default_rng

            seed, name = rng_key
            return sorted(default_rng([seed, zlib.crc32(name.encode())]).permutation(num_records)[:size].tolist())
        return range(size)


def parse_sampling(text: str) -> Sampling:
    """Reads the grammar above, strictly: ValueError for all else (misspelt, negative, bare, over 100%)."""
    if text == "all":
        return Sampling("all")
    kind, _, amount = text.partition(":")
    kind = {"end": "last"}.get(kind, kind)
    match = _AMOUNT.fullmatch(amount.strip())
    if kind not in ("first", "last", "random") or not match:
        raise ValueError(f"sampling {text!r} is not understood; allowed: {_ALLOWED}")
    if match[1] is not None:
        return Sampling(kind, count=int(match[1]))  # type: ignore[arg-type]
    if (percent := Decimal(match[2])) > 100:
        raise ValueError(f"sampling {text!r} takes more than there is; use repeat: N to see records several times")
    return Sampling(kind, percent=percent)  # type: ignore[arg-type]
