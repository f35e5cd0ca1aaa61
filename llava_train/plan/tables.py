"""The plan of a stage for people: what it is, how its packs balance, hours by ranks, memory by ZeRO level, advice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from llava_train.config.gpus import GPUS
from llava_train.config.schema import Config, StageConfig, ZeroConfig
from llava_train.costs.collectives import NODE, stage_traffic
from llava_train.costs.dims import ModelDims
from llava_train.costs.flops import Recomputed
from llava_train.costs.memory import RESERVED, activations, num_parameters, num_trained, recomputed_layers, states
from llava_train.plan.balance import StagePlan

ENOUGH = 0.9  # balance and fill below which something is said
GOOD = 0.97
VARIANTS = {
    "ZeRO 0": ZeroConfig(0, False, False),
    "ZeRO 1": ZeroConfig(1, False, False),
    "ZeRO 2": ZeroConfig(2, False, False),
    "ZeRO 2, optimizer on the host": ZeroConfig(2, True, False),
    "ZeRO 3": ZeroConfig(3, False, False),
    "ZeRO 3, optimizer on the host": ZeroConfig(3, True, False),
    "ZeRO 3, parameters on the host": ZeroConfig(3, False, True),
    "ZeRO 3, both on the host": ZeroConfig(3, True, True),
}


def print_plan(console: Console, config: Config, name: str, plan: StagePlan, dims: ModelDims) -> None:
    stage = config.stages[name]
    origin = config.data.file or stage.mixture
    if config.plan.simulate:
        origin = f"{config.plan.simulate:,} samples drawn by the shares of LLaVA-OneVision's mixture"
    console.print(f"\nstage {name}: {origin}", style="bold underline")
    overview = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, text in _overview(config, stage, plan, dims):
        overview.add_row(key, text)
    console.print(overview)
    console.print(_packings(stage, plan))
    console.print(_scaling(config, stage, plan, dims))
    console.print(_memories(config, stage, plan, dims))
    for line in _advice(config, name, plan, dims):
        console.print(f"-> {line}", style="bold")


def _overview(config: Config, stage: StageConfig, plan: StagePlan, dims: ModelDims) -> Iterator[tuple[str, str]]:
    sizes, asked = plan.draws.sizes, plan.asked
    tokens, visual, supervised = (int(array.sum()) for array in (sizes.lengths, sizes.visual, sizes.supervised))
    trained, total = num_trained(dims, stage), sum(num_parameters(dims).values())
    level, gpu = stage.zero.level, GPUS[config.plan.gpu]
    hours = plan.hours(level, gpu.peak * config.plan.mfu)
    yield "model", f"{total:,} parameters, of which {trained:,} train"
    yield "samples", f"{len(sizes.lengths):,} in an epoch"
    if plan.draws.left_out:
        yield "skipped", ", ".join(f"{count:,} {reason}" for reason, count in plan.draws.left_out.items())
    yield "tokens", f"{tokens:,}: {visual:,} visual, {tokens - visual:,} text; {supervised:,} supervised"
    yield "longest", "; ".join(_sample(plan, draw) for draw in plan.longest)
    yield "steps", f"{plan.num_steps:,} of about {asked.samples:,.0f} samples"
    yield "packs", f"{asked.packs:,.1f} a step on each of {asked.world_size} ranks"
    yield "fill", f"{asked.fill:.3f} of {stage.pack.max_tokens:,} tokens, {asked.fill_tiles:.3f} of the tiles"
    yield "balance", f"{asked.balance(level):.3f} at ZeRO {level}; no packing of such steps exceeds {asked.bound:.3f}"
    yield "compute", f"{plan.flops:.2e} FLOPs as MFU counts them: without what a backward computes again"
    again = recomputed_layers(dims, stage, asked.world_size, gpu.memory)
    of_all = f"{again.language} of {dims.layers} layers of the language model, {again.tower} of {dims.tower_layers}"
    yield "run again", f"{of_all} of the tower (gradient_checkpointing={str(stage.gradient_checkpointing).lower()})"
    gpus = f"{asked.world_size} {config.plan.gpu}, each at {config.plan.mfu:g} of its bf16 peak while it does not wait"
    yield "time", f"{hours:,.3g} hours on {gpus}"


def _sample(plan: StagePlan, draw: int) -> str:
    sizes = plan.draws.sizes
    return f"{plan.draws.name_of(draw)}, {sizes.lengths[draw]:,} tokens, {sizes.tiles[draw]} tiles"


def _packings(stage: StageConfig, plan: StagePlan) -> Table:
    title = "packing: mean cost of a rank / cost that is waited for, by when ranks wait"
    table = Table(title=title, title_justify="left")
    columns = ("unit", "per_step", "ranks", "samples", "packs a rank", "fill", "each pack", "each step", "bound", "gap")
    for column in columns:
        table.add_column(column, justify="left" if column == "unit" else "right")
    for packing in plan.others:
        level = stage.zero.level
        figures = (packing.fill, packing.every, packing.once, packing.bound, packing.bound - packing.balance(level))
        per_step = f"{packing.per_step}" if packing.unit == "tokens" else ""
        counts = (f"{packing.world_size}", f"{packing.samples:,.0f}", f"{packing.packs:.1f}")
        cells = (packing.unit, per_step, *counts, *(f"{figure:.3f}" for figure in figures))
        table.add_row(*cells, style="bold" if packing is plan.asked else "")
    table.caption = "each pack: ZeRO 3, and 2; each step: ZeRO 0 and 1, and 2. bound: max(mean, dearest sample)."
    return table


def _scaling(config: Config, stage: StageConfig, plan: StagePlan, dims: ModelDims) -> Table:
    """Hours by ranks: of computing, with its waiting, and of what ranks send each other, which may go on beside it."""
    gpu, level = GPUS[config.plan.gpu], stage.zero.level
    links = f"{gpu.link / 1e9:,.0f} GB/s within a node of {NODE}, {config.plan.network:g} GB/s a GPU between nodes"
    table = Table(title=f"hours by ranks of {config.plan.gpu} at ZeRO {level}; {links}", title_justify="left")
    for column in ("ranks", "GB sent a step", "computing", "sending", "share", "hours"):
        table.add_column(column, justify="right")
    for packing in plan.others:
        if packing.unit != stage.pack.unit:
            continue
        ranks, num_steps = packing.world_size, plan.num_steps * packing.num_steps / plan.asked.num_steps
        sent = stage_traffic(dims, stage, packing.packs)
        compute = plan.flops / packing.balance(level) / ranks / (gpu.peak * config.plan.mfu) / 3600
        send = sent.seconds(ranks, gpu, config.plan.network * 1e9) * num_steps / 3600
        hours = f"{max(compute, send):,.3g} to {compute + send:,.3g}"
        cells = (f"{sent.sent(ranks) / 1e9:,.2f}", f"{compute:,.3g}", f"{send:,.3g}", f"{send / (compute + send):.0%}")
        table.add_row(f"{ranks}", *cells, hours, style="bold" if packing is plan.asked else "")
    table.caption = "share: of sending, if none of it is hidden behind computing. hours: if all of it is, and if none."
    return table


def _memories(config: Config, stage: StageConfig, plan: StagePlan, dims: ModelDims) -> Table:
    gpu, ranks = GPUS[config.plan.gpu], config.plan.world_size
    ways = (recomputed_layers(dims, replace(stage, gradient_checkpointing=on), ranks, 0) for on in (True, False))
    fullest, plain = (_activations(stage, plan, dims, recomputed) for recomputed in ways)
    title = f"memory of a rank of {ranks}, GB; estimated for the fullest pack, GPU with {gpu.memory / 1e9:.0f}"
    table = Table(title=title, title_justify="left")
    for column in ("", "states", "gathered", "with checkpointing", "without", "on the host"):
        table.add_column(column, justify="left" if not column else "right")
    for label, zero in VARIANTS.items():
        of_rank = states(dims, stage, zero, ranks)
        held = of_rank.gpu + RESERVED
        cells = [of_rank.gpu - of_rank.gathered, of_rank.gathered]
        totals = [f"{_gb(held + more)}{'' if held + more <= gpu.memory else ' !'}" for more in (fullest, plain)]
        table.add_row(label, *map(_gb, cells), *totals, _gb(of_rank.host), style="bold" if zero == stage.zero else "")
    table.caption = (
        f"a pack's activations: {_gb(fullest)} with gradient checkpointing, {_gb(plain)} without. !: too much"
    )
    return table


def _activations(stage: StageConfig, plan: StagePlan, dims: ModelDims, recomputed: Recomputed) -> float:
    asked = plan.asked
    return float(activations(dims, stage, recomputed, asked.tokens, asked.tiles, asked.supervised).max())


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}"


def _advice(config: Config, name: str, plan: StagePlan, dims: ModelDims) -> Iterator[str]:
    stage, asked = config.stages[name], plan.asked
    key, level = f"stages.{name}", stage.zero.level
    if asked.balance(level) < ENOUGH:
        yield from _wasted(key, stage, plan)
    if asked.unit == "tokens" and asked.fill < GOOD and asked.fill_tiles > asked.fill:
        more = round(stage.pack.max_tiles / asked.fill * 1.1)
        yield f"packs are full of tiles before they are full of tokens: set {key}.pack.max_tiles={more}"
    gpu = GPUS[config.plan.gpu]
    recomputed = recomputed_layers(dims, stage, asked.world_size, gpu.memory)
    held = states(dims, stage, stage.zero, asked.world_size).gpu
    needed = held + _activations(stage, plan, dims, recomputed) + RESERVED
    if needed > gpu.memory:
        yield (
            f"a rank needs about {_gb(needed)} GB, and {config.plan.gpu} has {_gb(gpu.memory)}: "
            f"take a higher ZeRO level, more ranks or a smaller {key}.pack.max_tokens"
        )


def _wasted(key: str, stage: StageConfig, plan: StagePlan) -> Iterator[str]:
    asked, level = plan.asked, stage.zero.level
    lost = 1 - asked.balance(level)
    told = f"{asked.world_size} ranks wait {lost:.0%} of their time: steps of {asked.samples:,.0f} samples"
    if asked.unit == "tokens":
        yield f"{told} are too uneven; give each rank more packs: {key}.pack.per_step={2 * asked.per_step}"
        return
    good = [p.world_size for p in plan.others if p.unit == "samples" and p.balance(level) >= GOOD]
    other = next(p for p in plan.others if p.unit == "tokens" and p.world_size == asked.world_size)
    yield (
        f"{told} cannot be shared evenly by so many. Set {key}.pack.unit=tokens {key}.pack.per_step={other.per_step} "
        f"(balance {other.balance(level):.3f}, fill {other.fill:.3f}, about {other.samples:,.0f} samples a step)"
        + (f", or take {max(good)} ranks" if good else "")
    )
