"""`job begin|end`: what `slurm/train.sbatch` asks before and after a job's ranks have run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llava_train.config.load import load
from llava_train.train.run import job_segments


def run(argv: list[str]) -> int:
    """begin WORDS: claims the run that the words describe, and prints the folder for its logs.

    end FOLDER CODE SIGNAL: prints `requeue` or `end`, then the nodes that the job should not get again.
    """
    max_failures = int(os.environ["MAX_FAILURES"])
    what, *words = argv
    if what == "begin":
        job, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]
        restart, live = int(os.environ.get("SLURM_RESTART_COUNT", 0)), os.environ["LIVE_JOBS"].split()
        print(job_segments.begin(Path(load(words).run.dir).absolute(), job, restart, nodes, live, max_failures))
        return 0
    folder, code, heard = words
    segment, refusal, excluded = job_segments.end(Path(folder), int(code), heard, max_failures)
    told = f"segment {segment.number} {segment.outcome}" + (f": {segment.reason}" if segment.reason else "")
    print(f"{told}\nnot requeued: {refusal}" if refusal not in ("", "done") else told, file=sys.stderr)
    print("end" if refusal else "requeue", ",".join(excluded))
    return 0
