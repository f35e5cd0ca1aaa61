"""Waits for the end of its standard input, then ends all that a cluster started and removes its folder.

usage: undertaker.py FOLDER. Whoever holds the other end may be killed: the pipe closes all the same.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def left(folder: str) -> Iterator[int]:
    """Daemons, clients, jobs: all that know the cluster by its configuration, and have not ended."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    while pids := list(left(sys.argv[1])):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(sys.argv[1])
