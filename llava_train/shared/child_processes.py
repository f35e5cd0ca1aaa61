"""Processes that data starts. A signal sent to all processes of a run is the training process's to answer, not theirs.

Ctrl-C, `scancel` and launchers signal every process. A worker that died of it would take the step with it that is to be
finished and saved.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR1, signal.SIGINT})


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started in the body are born with the stop signals blocked; the starter's own arrive after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(_worker_id: int = 0) -> None:
    """For a shielded process that `multiprocessing` forked: ends it at its parent's SIGTERM, or soon after it."""
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent, "not a process of multiprocessing"
    while True:
        told = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if os.getppid() != parent.pid or (told and told.si_pid == parent.pid):
            os._exit(0)
