"""Host memory in bytes: what this process may still take, and the most that it has taken."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# version of control groups -> folder below /sys/fs/cgroup, files of the limit and the use, entry that can be reclaimed
_GROUPS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def peak_memory() -> int:
    """Resident memory of this process at its highest, pages of files that it has mapped included."""
    lines = _STATUS.read_text().splitlines() if _STATUS.is_file() else []
    for line in lines:  # getrusage would count what the parent held when it started this process
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def restart_peak() -> None:
    """Lets `peak_memory` begin anew from what is held now, where the system can; else it goes on from the start."""
    with suppress(OSError):
        _CLEAR.write_text("5")  # Linux, proc_pid_clear_refs(5): sets VmHWM to VmRSS


def available_memory(root: Path = Path("/")) -> int:
    """The least of what the machine has left and what each control group of a job or container leaves; 0 = unknown."""
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return 0
    lines = (line.split() for line in meminfo.read_text().splitlines())
    [machine] = [int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"]
    return min([machine, *_left_by_groups(root)])


def _left_by_groups(root: Path) -> Iterator[int]:
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        below, limit_file, use_file, reclaimable = _GROUPS[2 if number == "0" else 1]
        top = root / "sys/fs/cgroup" / below
        here = top / path.lstrip("/")
        for folder in (here, *here.parents):  # a limit holds for all groups below
            if not folder.is_relative_to(top):
                break
            if (folder / limit_file).is_file() and (limit := (folder / limit_file).read_text().strip()) != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / use_file).read_text()) - int(stat.get(reclaimable, 0))
                yield max(int(limit) - used, 0)
