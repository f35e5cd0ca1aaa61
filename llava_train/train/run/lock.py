"""One start at a time trains in a run's folder, under SLURM or not: rank 0 holds a lock on it until its process ends.

The system lets go of the lock of a process that dies, so none is ever to be removed by hand.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llava_train.ranks.process_group import Ranks
from llava_train.shared.console import console
from llava_train.shared.errors import RunError
from llava_train.shared.json_files import read_json
from llava_train.shared.whole_files import write_json

LOCK, HOLDER = "training.lock", "training.json"
ENDING = 10.0  # seconds in which the workers of a process that died end too, and its lock with them
EVICTED = 120.0  # seconds in which a shared disk lets go of the locks of a node that was lost


@contextmanager
def alone(run: Path, ranks: Ranks) -> Iterator[None]:
    """Around a training. Raises RunError, on all ranks, with the process that trains the run already."""
    lock, error = FileLock(run / LOCK), ""
    if ranks.is_first:
        try:
            run.mkdir(parents=True, exist_ok=True)
            _acquire(lock, run, ranks.environ.get("SLURM_JOB_ID", ""))
        except RunError as refusal:
            error = str(refusal)
        except OSError as problem:  # of a disk without locks, or one that the run is refused for before its start
            told = f"{run} cannot be locked ({problem.strerror}): a second run in it would not be noticed"
            console().print(told, highlight=False, markup=False)
    if error := ranks.first(error):
        raise RunError(error)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, run: Path, job: str) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        try:
            lock.acquire(timeout=_patience(_holder(run), job))
        except Timeout as error:
            holder = _holder(run)
            by = f"process {holder['process']} on {holder['host']}" if holder else "another process"
            remedy = "let it, or give this run a folder of its own: run.dir=DIR"
            raise RunError(f"{run} is being trained by {by}\n    -> {remedy}") from error
    holder = {"process": os.getpid(), "host": socket.gethostname(), "job": job}
    write_json(run / HOLDER, holder)


def _patience(holder: dict[str, Any] | None, job: str) -> float:
    """Seconds that a lock is waited for: what held it may have ended just now."""
    if holder is None:
        return ENDING  # it has not said who it is yet
    if holder["host"] == socket.gethostname():
        is_gone = holder["process"] == os.getpid() or not Path("/proc", str(holder["process"])).exists()
        return ENDING if is_gone else 0.0  # this process itself, where it was started anew
    return EVICTED if job and holder["job"] == job else 0.0  # SLURM has ended what it started before


def _holder(run: Path) -> dict[str, Any] | None:
    path = run / HOLDER
    return read_json(path) if path.exists() else None
