"""Where the ranks of a run find each other: one store, in which each counts itself in before any of them waits.

A rank that waits says so, with for whom and where, and ends after `Launch.start_wait` seconds with the same. It waits
in Python and not in a library, so a signal ends it at once.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from llava_train.ranks.launcher import START_WAIT, Launch
from llava_train.shared.errors import LostRankError, RunError

SAID_AFTER = 3.0  # seconds; ranks that start together are rarely further apart
PAUSE = 0.1
ANSWER = timedelta(seconds=5)  # within which a store answers
NAMED = 8


def meet(launch: Launch, timeout: timedelta) -> dist.Store:
    """The store of all ranks, when all have come. timeout: of its later use.

    Raises RunError where the port is taken, LostRankError where a rank does not come in time.
    """
    wait = _Wait(launch)
    while True:
        try:
            store = _reach(launch, wait)
            _count_in(dist.PrefixStore(f"came {launch.attempt}", store), launch, wait)
        except dist.DistNetworkError as error:  # the rank that keeps the store is gone, or starts anew
            wait.pause("an answer", str(error))
        else:
            store.set_timeout(timeout)
            return dist.PrefixStore(f"attempt {launch.attempt}", store)


def _reach(launch: Launch, wait: _Wait) -> dist.Store:
    while True:
        made: list[dist.Store | OSError | dist.DistError] = []
        # In a thread, since another program at that port may never answer, and no timeout of the store ends that.
        thread = threading.Thread(target=_make_store, args=(launch, made), daemon=True)
        thread.start()
        thread.join(PAUSE)
        while thread.is_alive():
            wait.pause("an answer", "what listens there does not answer")
        if isinstance(made[0], dist.Store):
            return made[0]
        if "EADDRINUSE" in str(made[0]):
            told = f"MASTER_PORT: {launch.port} is taken by another program on this machine"
            remedy = "another port for all ranks, or end that program: it may be an earlier start of this run"
            raise RunError(f"{told}\n    -> {remedy}")
        wait.pause("an answer", str(made[0]))


def _make_store(launch: Launch, made: list[dist.Store | OSError | dist.DistError]) -> None:
    keeps = launch.rank == 0 and not launch.has_store
    host = "localhost" if keeps else launch.host  # it listens at every address
    try:
        if not keeps:
            socket.create_connection((host, launch.port), timeout=1).close()
        made.append(dist.TCPStore(host, launch.port, None, keeps, ANSWER, wait_for_workers=False, multi_tenant=True))
    except (OSError, dist.DistError) as error:
        made.append(error)


def _count_in(store: dist.Store, launch: Launch, wait: _Wait) -> None:
    keys = [str(rank) for rank in range(launch.world_size)]
    store.set(keys[launch.rank], "")
    while not store.check(keys):
        missing = [key for key in keys if not store.check([key])]
        others = "1 other rank" if len(missing) == 1 else f"{len(missing)} other ranks"
        wait.pause(others, f"rank {', '.join(missing[:NAMED])}{', ...' if len(missing) > NAMED else ''}")


class _Wait:
    """The time that one rank waits for all others."""

    def __init__(self, launch: Launch):
        self._launch, self._began, self._is_said = launch, time.monotonic(), False

    def pause(self, awaited: str, detail: str) -> None:
        """Raises LostRankError when the time is over."""
        launch, seconds = self._launch, time.monotonic() - self._began
        size = f"{launch.launcher.world_size}={launch.world_size}"
        told = f"waiting for {awaited} at {launch.host}:{launch.port} ({size}); {launch.launcher.alone}"
        if seconds > launch.start_wait:
            remedy = f"start all ranks with the same MASTER_ADDR and MASTER_PORT; {START_WAIT}=SECONDS waits longer"
            raise LostRankError(
                f"{told}\n  in vain for {launch.start_wait} s: {detail.splitlines()[0]}\n    -> {remedy}"
            )
        if seconds > SAID_AFTER and not self._is_said:
            self._is_said = True
            print(f"{told} (this rank ends after {launch.start_wait} s)", file=sys.stderr, flush=True)
        time.sleep(PAUSE)
