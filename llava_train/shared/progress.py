"""How far a long row of work is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 10.0  # between lines where there is no terminal

Item = TypeVar("Item")


def tracked(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """The items as they come, told on the standard error stream: how many, and the time that the rest will take."""
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    started = last = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        for done, item in enumerate(items, 1):
            yield item
            progress.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and done < total and now - last >= LINE_SECONDS:
                last = now
                left = (now - started) / done * (total - done)
                console.print(f"{label} {done}/{total}  {left:.0f} s left", highlight=False)
