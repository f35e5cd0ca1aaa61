"""The console to which a command prints; only rank 0 prints."""

from __future__ import annotations

import sys

from rich.console import Console


def console(is_first: bool = True) -> Console:
    return Console(quiet=not is_first, width=None if sys.stdout.isatty() else 120)
