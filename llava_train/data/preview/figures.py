"""The figures of a preview's page, as HTML: shares of the mixture, lengths, packs.

Enters: the `Survey` of a stage. Leaves: markup for `page.html`, sizes in it as styles, numbers as text too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from llava_train.config.schema import PackConfig, StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.costs.flops import sample_cost
from llava_train.data.packing.order import make_order
from llava_train.data.packing.packs import PackSizes
from llava_train.data.preview.measure import Size, Survey
from llava_train.shared.html import escaped

BINS = 24  # bars of the lengths, at most
STEPS, PACKS = 2, 40  # whose packs are drawn, at most
TOKEN_PARTS = {"visual": "visual", "text": "text that is read", "supervised": "text that is learned"}


def mixture_table(found: Survey) -> str:
    """A row per source: its share of an epoch's samples, tokens and supervised tokens, and of those shown."""
    weights = found.weights()
    shares: dict[str, dict[str, tuple[float, float]]] = {}
    for measure, values in _measures(found.sizes).items():
        epoch, shown = _by_source(found, values * weights), _by_source(found, values)
        shares[measure] = {name: (epoch[name], shown[name]) for name in found.draws}
    widest = max((value for of in shares.values() for pair in of.values() for value in pair), default=0) or 1.0
    rows = []
    for name in sorted(found.draws, key=lambda name: -found.draws[name]):
        cells = "".join(_share(*of[name], widest) for of in shares.values())
        rows.append(
            f"<tr><th scope=row>{escaped(name)}<td class=n>{found.draws[name]:,}{cells}"
            f"<td class=n>{found.measured[name]:,}<td class=n>{found.shown[name]:,}"
            f'<td class="n{" bad" if found.refused[name] else ""}">{found.refused[name]:,}'
        )
    return "".join(rows)


def _measures(sizes: Sequence[Size]) -> dict[str, np.ndarray]:
    columns = {"samples": [1.0] * len(sizes), "tokens": [size.tokens for size in sizes]}
    columns["supervised"] = [size.supervised for size in sizes]
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def _by_source(found: Survey, values: np.ndarray) -> dict[str, float]:
    """Share of the values that each source has."""
    total = values.sum() or 1.0
    sources = np.array([size.source for size in found.sizes])
    return {name: float(values[sources == name].sum() / total) for name in found.draws}


def _share(epoch: float, measured: float, widest: float) -> str:
    return (
        f"<td><span class=share title='{epoch:.1%} of an epoch, {measured:.1%} of what was measured'>"
        f"<span class=bar><i style=width:{epoch / widest:.2%}></i><b style=left:{measured / widest:.2%}></b></span>"
        f"{epoch:.1%}</span>"
    )


def lengths(found: Survey) -> str:
    """A bar per range of lengths, as high as samples of an epoch are in it, divided as their tokens are."""
    tokens = np.array([size.tokens for size in found.sizes])
    width = _bin_width(int(tokens.max()) + 1)
    bins, weights = tokens // width, found.weights()
    parts = _parts(found.sizes)
    heights = np.bincount(bins, weights)
    bars = []
    for i, height in enumerate(heights):
        of_bin = {name: float((values * weights)[bins == i].sum()) for name, values in parts.items()}
        total = sum(of_bin.values()) or 1.0
        told = ", ".join(f"{value / total:.0%} {TOKEN_PARTS[name]}" for name, value in of_bin.items())
        stack = "".join(f"<i class={name} style=flex-grow:{value / total:.4f}></i>" for name, value in of_bin.items())
        shown = f"{max(height / heights.max(), 0.01):.2%}" if height else "0"
        title = f"{i * width:,} to {(i + 1) * width - 1:,} tokens: {height:,.0f} samples, {told}"
        tick = f"{i * width:,}" if i % max(len(heights) // 6, 1) == 0 else ""
        bars.append(f"<li title='{title}'><span style=height:{shown}>{stack}</span><small>{tick}</small>")
    return (
        f"<p class=top>{heights.max():,.0f} samples</p><ol class=lengths>{''.join(bars)}</ol>{_table(parts, weights)}"
    )


def _parts(sizes: Sequence[Size]) -> dict[str, np.ndarray]:
    columns = {"visual": [size.visual for size in sizes]}
    columns["text"] = [size.tokens - size.visual - size.supervised for size in sizes]
    columns["supervised"] = [size.supervised for size in sizes]
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def _table(parts: dict[str, np.ndarray], weights: np.ndarray) -> str:
    total = np.sum(list(parts.values()), axis=0)
    rows = []
    for name, values in [*parts.items(), ("all", total)]:
        median, most = _quantile(values, weights, 0.5), _quantile(values, weights, 0.95)
        share = (values * weights).sum() / (total * weights).sum()
        rows.append(
            f"<tr><th scope=row><i class={name}></i>{TOKEN_PARTS.get(name, 'all tokens')}<td class=n>{share:.2%}"
            f"<td class=n>{median:,.0f}<td class=n>{most:,.0f}<td class=n>{values.max():,.0f}"
        )
    head = "<tr><th>tokens of a sample<th class=n>share<th class=n>median<th class=n>95 %<th class=n>most"
    return f"<table class=parts>{head}{''.join(rows)}</table>"


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])


def _bin_width(longest: int) -> int:
    """The least of 1, 2, 5, 10, 20, ... of which BINS reach the longest."""
    return next(step * 10**power for power in range(12) for step in (1, 2, 5) if step * 10**power * BINS >= longest)


def packs(found: Survey, stage: StageConfig, name: str, dims: ModelDims, seed: int) -> tuple[str, str]:
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
    told = (
        f"{_num(len(bars), 'pack')} of {_num(len(steps), 'step')}, {drawn}; on average {filled:.0%} of the tokens that"
        f" fit and {used:.0%} of the tiles. {f'The first {PACKS}:' if len(bars) > PACKS else ''}"
    )
    return "".join(bars[:PACKS]), told


def _num(count: int, name: str) -> str:
    return f"{count:,} {name}{'s' * (count != 1)}"


def _pack(name: str, samples: Sequence[Size], limit: PackConfig) -> str:
    tokens, tiles = sum(size.tokens for size in samples), sum(size.tiles for size in samples)
    scale = max(tokens, limit.max_tokens)
    bars = "".join(
        f'<i class={size.kind} style=width:{size.tokens / scale:.3%} title="{escaped(size.name)}: {size.kind}, '
        f'{size.tokens:,} tokens, {size.tiles} tiles"></i>'
        for size in samples
    )
    return (
        f"<li><span class=name>{name}</span><span class=pack>{bars}</span>"
        f"<span class=tiles><i style=width:{min(tiles / limit.max_tiles, 1):.2%}></i></span>"
        f"<span class=told>{_num(len(samples), 'sample')} · {tokens:,} of {limit.max_tokens:,} tokens"
        f" ({tokens / limit.max_tokens:.0%}) · {tiles} of {limit.max_tiles} tiles</span>"
    )
