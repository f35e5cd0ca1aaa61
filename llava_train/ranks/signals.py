"""SIGTERM, SIGUSR1, SIGINT: the first asks the run to finish its step, save and stop; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llava_train.shared.child_processes import STOP_SIGNALS

EXIT_CODE = os.EX_TEMPFAIL  # 75: the same command continues
LOST = os.EX_UNAVAILABLE  # 69: another rank is gone or does not come
HUNG = os.EX_SOFTWARE  # 70: no step in time
GRACE = 3.0  # seconds in which a second signal counts as the first: launchers pass on what a process has had already


class Stopped(BaseException):
    """The run stops as it was told to, with all that is done saved. No Exception, so that no library swallows it."""


class StopSignal:
    """Receives the stop signals while it is entered, in the main thread; puts the earlier handlers back after it.

    Where nothing is lost by stopping, the first signal raises Stopped there and then. In a `deferred` body it only sets
    `requested`: the body asks for it after each step, saves, and raises Stopped itself.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_deferred = False

    def __enter__(self) -> StopSignal:
        # A thread hears of signals through this socket even while the main one waits inside a collective.
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._mouth_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        threading.Thread(target=_listen, args=(self._ear,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._mouth_before)
        self._mouth.send(b"\0")
        self._mouth.close()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In the body a signal raises nothing. Raises Stopped at once if there was one before."""
        if self.requested:
            raise Stopped("stopped")
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _receive(self, number: int, _frame: Any) -> None:
        is_first, self.requested = not self.requested, True
        if is_first and not self._is_deferred:
            raise Stopped(f"stopped by {signal.Signals(number).name}")


def _listen(ear: socket.socket) -> None:
    """Announces the first stop signal; ends the process at one that comes later than GRACE after it."""
    first = None
    with ear:
        while (heard := ear.recv(1)) not in (b"", b"\0"):
            number = heard[0]
            if number not in STOP_SIGNALS:  # another handler's, such as the data loader's for SIGCHLD
                continue
            if first is None:
                first = time.monotonic()
                told = f"{signal.Signals(number).name}: stopping; a step under way is finished and saved first"
                print(f"{told}. A second signal ends the process at once", file=sys.stderr, flush=True)
            elif time.monotonic() - first > GRACE:
                os._exit(128 + number)
