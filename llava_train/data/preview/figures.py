"""The figures of a preview's page: shares of the mixture, lengths, packs.

Enters: the `Survey` of a stage. Leaves: the numbers and words that `stage.html` shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from llava_train.config.schema import PackConfig, StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.costs.flops import sample_cost
from llava_train.data.packing.order import make_order
from llava_train.data.packing.packs import PackSizes
from llava_train.data.preview.measure import Size, Survey

BINS = 24  # bars of the lengths, at most
STEPS, PACKS = 2, 40  # whose packs are drawn, at most
TOKEN_PARTS = {"visual": "visual", "text": "text that is read", "supervised": "text that is learned"}


def mixture_rows(found: Survey) -> tuple[list[dict[str, Any]], float]:
    """A row per source: its share of an epoch's samples, tokens and supervised tokens, and of those measured. Beside
    them the largest of all shares."""
    weights = found.weights()
    shares: list[dict[str, dict[str, float]]] = []
    for values in _measures(found.sizes):
        epoch, measured = _by_source(found, values * weights), _by_source(found, values)
        shares.append({name: {"epoch": epoch[name], "measured": measured[name]} for name in found.draws})
    widest = max((value for of in shares for pair in of.values() for value in pair.values()), default=0) or 1.0
    rows = [
        {
            "name": name,
            "draws": found.draws[name],
            "shares": [of[name] for of in shares],
            "measured": found.measured[name],
            "shown": found.shown[name],
            "refused": found.refused[name],
        }
        for name in sorted(found.draws, key=lambda name: -found.draws[name])
    ]
    return rows, widest


def _measures(sizes: Sequence[Size]) -> list[np.ndarray]:
    """Samples, tokens, supervised tokens: float64 [sizes] each."""
    columns = ([1.0] * len(sizes), [size.tokens for size in sizes], [size.supervised for size in sizes])
    return [np.array(values, dtype=np.float64) for values in columns]


def _by_source(found: Survey, values: np.ndarray) -> dict[str, float]:
    """Share of the values that each source has."""
    total = values.sum() or 1.0
    sources = np.array([size.source for size in found.sizes])
    return {name: float(values[sources == name].sum() / total) for name in found.draws}


def length_bars(found: Survey) -> dict[str, Any]:
    """A bar per range of lengths, as high as samples of an epoch are in it, divided as their tokens are; a table."""
    tokens = np.array([size.tokens for size in found.sizes])
    width = _bin_width(int(tokens.max()) + 1)
    bins, weights = tokens // width, found.weights()
    parts = _parts(found.sizes)
    heights = np.bincount(bins, weights)
    bars = []
    for i, height in enumerate(heights):
        of_bin = {name: float((values * weights)[bins == i].sum()) for name, values in parts.items()}
        total = sum(of_bin.values()) or 1.0
        shares = {name: value / total for name, value in of_bin.items()}
        words = ", ".join(f"{share:.0%} {TOKEN_PARTS[name]}" for name, share in shares.items())
        bar = {
            "title": f"{i * width:,} to {(i + 1) * width - 1:,} tokens: {height:,.0f} samples, {words}",
            "height": f"{max(height / heights.max(), 0.01):.2%}" if height else "0",
            "parts": shares,
            "tick": f"{i * width:,}" if i % max(len(heights) // 6, 1) == 0 else "",
        }
        bars.append(bar)
    return {"most": heights.max(), "bars": bars, "table": _length_rows(parts, weights)}


def _parts(sizes: Sequence[Size]) -> dict[str, np.ndarray]:
    columns = {"visual": [size.visual for size in sizes]}
    columns["text"] = [size.tokens - size.visual - size.supervised for size in sizes]
    columns["supervised"] = [size.supervised for size in sizes]
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def _length_rows(parts: dict[str, np.ndarray], weights: np.ndarray) -> list[dict[str, Any]]:
    """Of each kind of token and of all: their share, and how many a sample has."""
    total = np.sum(list(parts.values()), axis=0)
    return [
        {
            "name": name,
            "words": TOKEN_PARTS.get(name, "all tokens"),
            "share": (values * weights).sum() / (total * weights).sum(),
            "median": _quantile(values, weights, 0.5),
            "high": _quantile(values, weights, 0.95),
            "most": values.max(),
        }
        for name, values in [*parts.items(), ("all", total)]
    ]


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])


def _bin_width(longest: int) -> int:
    """The least of 1, 2, 5, 10, 20, ... of which BINS reach the longest."""
    return next(step * 10**power for power in range(12) for step in (1, 2, 5) if step * 10**power * BINS >= longest)


def pack_bars(found: Survey, stage: StageConfig, name: str, dims: ModelDims, seed: int) -> dict[str, Any]:
    """The packs of the first steps on one GPU, each a bar of its samples, and what they are, in words."""
    pool, limit = found.pool(seed), stage.pack
    tokens, tiles, supervised = (
        np.array([getattr(size, column) for size in found.sizes])[pool] for column in ("tokens", "tiles", "supervised")
    )
    cost = sample_cost(dims, stage)(tokens, tiles, supervised)
    with TemporaryDirectory() as folder:
        order = make_order(PackSizes(tokens, tiles, cost), stage, name, seed, 1, Path(folder))
        steps = [order.packs(step, 1)[0] for step in range(min(STEPS, order.steps_per_epoch))]
    of_steps = [pack for step in steps for pack in step]
    filled, used = (
        np.mean([min(values[pack].sum() / most, 1) for pack in of_steps])
        for values, most in ((tokens, limit.max_tokens), (tiles, limit.max_tiles))
    )
    bars = [
        _pack(f"step {i}, pack {j}", [found.sizes[pool[k]] for k in pack], limit)
        for i, step in enumerate(steps, 1)
        for j, pack in enumerate(step, 1)
    ]
    drawn = "as training draws them, before any are held out" if found.is_whole else "of samples drawn by these shares"
    words = (
        f"{_num(len(bars), 'pack')} of {_num(len(steps), 'step')}, {drawn}; on average {filled:.0%} of the tokens that"
        f" fit and {used:.0%} of the tiles. {f'The first {PACKS}:' if len(bars) > PACKS else ''}"
    )
    return {"bars": bars[:PACKS], "words": words}


def _num(count: int, name: str) -> str:
    return f"{count:,} {name}{'s' * (count != 1)}"


def _pack(name: str, samples: Sequence[Size], limit: PackConfig) -> dict[str, Any]:
    tokens, tiles = sum(size.tokens for size in samples), sum(size.tiles for size in samples)
    return {
        "name": name,
        "samples": samples,
        "scale": max(tokens, limit.max_tokens),
        "tiles_used": min(tiles / limit.max_tiles, 1),
        "words": f"{_num(len(samples), 'sample')} · {tokens:,} of {limit.max_tokens:,} tokens"
        f" ({tokens / limit.max_tokens:.0%}) · {tiles} of {limit.max_tiles} tiles",
    }
