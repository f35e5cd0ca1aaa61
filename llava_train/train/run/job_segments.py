"""The segments of a run: what each SLURM job made of it, from one start of its ranks to their end.

`RUN/segments/0003.json` tells of the third, `RUN/segments/0003/` holds its ranks' logs. The number is taken by creating
the file, which one job alone can do; so a segment that has not ended is also the lock on the run.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal

from llava_train.ranks.signals import EXIT_CODE, HUNG, LOST
from llava_train.shared.errors import RunError
from llava_train.shared.json_files import read_json
from llava_train.shared.whole_files import write_json
from llava_train.train.checkpoint.run_folder import FINISHED, step_of, whole_checkpoints

FOLDER, SRUN = "segments", "srun.log"
REFUSED = 2  # exit code of what the user must mend
Outcome = Literal["running", "done", "stopped", "failed", "refused"]
_TASKS = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_NODE = re.compile(r"Node failure on (\S+)")
_ABORTED = re.compile(r"srun: (Job step aborted|forcing job termination)")  # then srun may end with 0
_ABORT = "Aborted"  # by SIGABRT: a crash, or NCCL's answer to a rank that does not come
_WAITED = "First task exited"  # srun itself ends ranks that are left
_MEMORY = re.compile(r"oom[-_ ]?kill", re.IGNORECASE)
MAX_STOPS = 10  # in a row that train no step: a time limit shorter than the start
_TOLERATED = 1  # failures that a task brought upon its node before the node is left out


@dataclass
class Segment:
    number: int
    job: str
    restart: int  # how often SLURM had started the job before
    nodes: str
    began: float  # Unix time
    position: list[int]  # at its begin: stages that were finished, and the step of the last checkpoint of the next
    outcome: Outcome = "running"
    reason: str = ""
    ended: float = 0.0
    reached: list[int] = field(default_factory=list)  # the position at its end
    bad_nodes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ending:
    outcome: Outcome
    reason: str
    bad_nodes: list[str] = field(default_factory=list)


def read_segments(run: Path) -> list[Segment]:
    files = sorted((run / FOLDER).glob("[0-9]*.json"))
    return [Segment(**read_json(path)) for path in files]


def logs_of(run: Path, number: int) -> Path:
    return run / FOLDER / f"{number:04d}"


def position(run: Path) -> list[int]:
    """Stages that are finished, and the step of the last whole checkpoint of one that is not."""
    num_finished = len(list(run.glob(f"*/{FINISHED}")))
    others = [f for f in run.glob("*") if f.is_dir() and not (f / FINISHED).exists()]
    return [num_finished, max((step_of(c) for f in others for c in whole_checkpoints(f)[:1]), default=0)]


def begin(run: Path, job: str, restart: int, nodes: str, live_jobs: Collection[str], max_failures: int) -> Path:
    """Claims the run for this job; returns the folder of its ranks' logs.

    Raises RunError, by name, where another job trains the run, and where the segments before failed too often.
    """
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    while True:
        segments = read_segments(run)
        last = segments[-1] if segments else None
        if last and last.outcome == "running":
            if last.job != job and last.job in live_jobs:
                raise RunError(
                    f"{run} is being trained by job {last.job} on {last.nodes}\n"
                    f"    -> let it: squeue --jobs={last.job}; or give this run a folder of its own: run.dir=DIR"
                )
            _close(run, last, judge_ending(_srun_log(run, last), None))
        if refusal := exhausted([s for s in segments if s.job == job], max_failures):
            raise RunError(refusal)
        mine = Segment(last.number + 1 if last else 1, job, restart, nodes, time.time(), position(run))
        if _claim(run, mine):
            logs = logs_of(run, mine.number)
            logs.mkdir(exist_ok=True)
            return logs


def _claim(run: Path, segment: Segment) -> bool:
    """Whether the number was free: the file appears with all that it holds, or not at all."""
    with NamedTemporaryFile("w", dir=run / FOLDER, prefix=".claim", encoding="utf-8") as beside:
        json.dump(asdict(segment), beside)
        beside.flush()
        try:
            os.link(beside.name, _file(run, segment))
        except FileExistsError:
            return False
    return True


def end(logs: Path, code: int, heard: str, max_failures: int) -> tuple[Segment, str, list[str]]:
    """Ends the segment of these logs with srun's exit code. `heard`: the last signal to the batch shell, or "".

    Returns it, why it is not to be requeued ("" = it is), and the nodes that the job should not get again.
    """
    run, number = logs.parents[1], int(logs.name)
    segment = next(s for s in read_segments(run) if s.number == number)
    ending = judge_ending(_srun_log(run, segment), code)
    if code == 128 + signal.SIGKILL and heard:  # by the batch script, shortly before the time limit
        ending = Ending("stopped", f"too little time to save, after {heard}")
    elif ending.outcome == "stopped" and heard:
        ending = Ending("stopped", f"{ending.reason}, after {heard}")
    _close(run, segment, ending)
    segments = [s for s in read_segments(run) if s.job == segment.job]
    nodes = [n for s in segments for n in s.bad_nodes]
    lost = _NODE.findall(_srun_log(run, segment))
    excluded = sorted({n for n in nodes if nodes.count(n) > _TOLERATED} | set(lost))
    if ending.outcome in ("done", "refused"):
        return segment, ending.reason or "done", []
    return segment, exhausted(segments, max_failures), excluded


def _close(run: Path, segment: Segment, ending: Ending) -> None:
    segment.outcome, segment.reason, segment.bad_nodes = ending.outcome, ending.reason, ending.bad_nodes
    segment.ended, segment.reached = time.time(), position(run)
    write_json(_file(run, segment), asdict(segment))


def exhausted(segments: list[Segment], max_failures: int) -> str:
    """Why the run is not started again: the last segments brought no checkpoint; "" = it is.

    `max_failures` that failed are too many, or MAX_STOPS that were stopped before they could train a step.
    """
    fruitless: list[Segment] = []
    for segment in reversed(segments):
        if segment.reached != segment.position or segment.outcome in ("done", "refused", "running"):
            break
        fruitless.append(segment)
    for outcome, limit, what in (("failed", max_failures, "failures"), ("stopped", MAX_STOPS, "stops")):
        found = [s for s in reversed(fruitless) if s.outcome == outcome]
        if len(found) >= limit:
            reasons = "\n".join(f"  segment {s.number}, job {s.job}: {s.reason}" for s in found)
            return f"{len(found)} {what} without a new checkpoint:\n{reasons}\n    -> mend it and submit the run again"
    return ""


def judge_ending(srun_log: str, code: int | None) -> Ending:
    """What ended a segment, from srun's messages and exit code; None where the batch shell did not live to see it."""
    aborted = bool(_ABORTED.search(srun_log)) and _WAITED not in srun_log
    if code == 0 and not aborted:
        return Ending("done", "")
    tasks = [(node, ids, text.strip()) for node, ids, text in _TASKS.findall(srun_log)]
    codes = {(node, ids): int(m[1]) for node, ids, text in tasks if (m := _EXITED.match(text))}
    if nodes := _NODE.findall(srun_log):
        return Ending("failed", f"lost node {', '.join(nodes)}", nodes)
    if _MEMORY.search(srun_log):
        return Ending("refused", "out of host memory")
    if where := [_named(*place) for place, c in codes.items() if c == REFUSED]:
        return Ending("refused", f"{where[0]} ended with code {REFUSED}: its log says what to mend")
    if set(codes.values()) == {EXIT_CODE} or (code == EXIT_CODE and not codes):
        return Ending("stopped", "stopped and saved")
    if aborted or code is None:
        return Ending("stopped", "ended by SLURM before it could save")
    bad = [(n, i, t) for n, i, t in tasks if codes.get((n, i)) not in (0, EXIT_CODE, LOST, HUNG)]
    if HUNG in codes.values():
        where = [_named(*place) for place, c in codes.items() if c == HUNG]
        return Ending("failed", f"no step in time: {', '.join(where)}; stacks in STAGE/stacks")
    crashed = [task for task in bad if not task[2].startswith(_ABORT)]
    if len(bad) > 1 and not crashed:
        return Ending("failed", f"{', '.join(_named(n, i) for n, i, _ in bad)}: {_ABORT}, as after an NCCL time-out")
    if bad:
        node, ids, text = (crashed or bad)[0]
        return Ending("failed", f"{_named(node, ids)}: {text}", [node])
    if tasks:
        return Ending("failed", f"{_named(*tasks[0][:2])}: {tasks[0][2]}")
    return Ending("failed", f"srun ended with code {code}")


def _named(node: str, tasks: str) -> str:
    return f"rank {tasks} on {node}"


def _file(run: Path, segment: Segment) -> Path:
    return run / FOLDER / f"{segment.number:04d}.json"


def _srun_log(run: Path, segment: Segment) -> str:
    path = logs_of(run, segment.number) / SRUN
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
