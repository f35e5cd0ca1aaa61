"""Ends a rank that hangs. What every rank was doing is in `STAGE/stacks/rank-0003.txt` before the first one ends.

The stacks are written by faulthandler's own thread, which needs no interpreter, so a rank that hangs inside a library
that holds it writes them too. Where one rank does not come to a step, `guard` names it; this is for what hangs within.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from llava_train.ranks.signals import HUNG
from llava_train.ranks.step_guard import LONGER

FOLDER = "stacks"
FIRST = (
    1800.0  # seconds at the least for the first step, which compiles, and for what lies between steps: saves, exports
)
SHARE = 0.5  # of the limit, at most LAST seconds, in which all ranks write and the guard names one, before a rank ends
LAST = 60.0


class Watchdog:
    """As a context: `watch` says what begins; what lasts longer than its limit ends the process with HUNG."""

    def __init__(self, stage_dir: Path, rank: int, least: float):
        """least: seconds that a step may take whatever the steps before took."""
        self._path, self._least = stage_dir / FOLDER / f"rank-{rank:04d}.txt", least
        self._longest: dict[str, float] = {}
        self._doing, self._began = "", 0.0
        self._deadline: float | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> Watchdog:
        self._path.parent.mkdir(exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
        self._deadline = float("inf")
        threading.Thread(target=self._end_at_deadline, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._set(None)
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()
        with suppress(OSError):  # another rank's file is there still
            self._path.parent.rmdir()

    def watch(self, doing: Literal["step", "pause"]) -> None:
        """A step begins, or what lies between two: the one before has ended."""
        now = time.monotonic()
        if self._doing:
            self._longest[self._doing] = max(self._longest.get(self._doing, 0.0), now - self._began)
        self._doing, self._began = doing, now
        limit = self.limit()
        faulthandler.dump_traceback_later(limit, file=self._file)
        self._set(now + limit + min(SHARE * limit, LAST))

    def limit(self) -> float:
        """Seconds that what goes on now may take: some times the longest of its kind so far."""
        is_usual = self._doing == "step" and "step" in self._longest
        least = self._least if is_usual else max(self._least, FIRST)
        return max(least, LONGER * self._longest.get(self._doing, 0.0))

    def _set(self, deadline: float | None) -> None:
        with self._changed:
            self._deadline = deadline
            self._changed.notify()

    def _end_at_deadline(self) -> None:
        with self._changed:
            while self._deadline is not None and (left := self._deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            if self._deadline is None:
                return
        told = f"no end of a {self._doing} within {self.limit():.0f} s: this rank ends. Its stack: {self._path}"
        print(told, file=sys.stderr, flush=True)
        os._exit(HUNG)
