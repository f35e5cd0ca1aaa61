"""`bench`: the speed of a stage's step here, beside what matrix products alone allow. No checkpoint is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from llava_train.cli.check import load_checked
from llava_train.ranks.signals import StopSignal
from llava_train.shared.json_files import to_json

if TYPE_CHECKING:
    from llava_train.train.bench import Speed


def run(argv: list[str]) -> int:
    """Prints a table and, as the last line, the same as JSON. Raises ConfigError, DataError."""
    with StopSignal() as stop:
        config, _ = load_checked(argv)
        from llava_train.ranks.process_group import start_ranks
        from llava_train.train.bench import Bench

        with start_ranks() as ranks:
            speed = Bench(config, ranks, stop).run(config.bench)
            if ranks.is_first:
                _print(speed)
    return 0


def _print(speed: Speed) -> None:
    title = f"stage {speed.stage}, {speed.precision}, {speed.device}, {speed.world_size} rank(s), {speed.steps} steps"
    table = Table(title=title, show_header=False, title_justify="left")
    for row in _rows(speed):
        table.add_row(*row)
    Console(width=100, highlight=False).print(table)
    print(to_json(asdict(speed)))


def _rows(speed: Speed) -> Iterator[tuple[str, str]]:
    yield "samples a second", f"{speed.samples_per_second:,.2f}"
    yield "tokens a second, no padding", f"{speed.tokens_per_second:,.0f}"
    yield "supervised tokens a second", f"{speed.supervised_per_second:,.0f}"
    yield "matrix products, measured", f"{speed.products / 1e9:,.1f} GFLOP/s a rank"
    yield "MFU, HFU of that", f"{speed.mfu:.1%}, {speed.hfu:.1%}"
    if speed.stated:
        share = speed.products / speed.stated
        yield "MFU, HFU of the data sheet", f"{speed.mfu * share:.1%}, {speed.hfu * share:.1%}"
    yield "waits for data", f"{speed.data_wait:.2%}"
    yield "a step", f"{speed.seconds_per_step * 1e3:,.1f} ms"
    for part, seconds in speed.parts.items():
        yield f"  {part}", f"{seconds * 1e3:,.1f} ms"
    yield "peak memory", f"{speed.peak_memory / 1e6:,.0f} MB"
    if speed.stated:
        yield "  planned, of a GPU", f"{speed.planned_memory / 1e6:,.0f} MB"
    yield "loss of the last step", f"{speed.loss:.4f}"
