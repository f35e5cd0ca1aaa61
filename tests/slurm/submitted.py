"""Runs of the tiny recipe as SLURM jobs: submitted as the docs say, watched by their files, held at a step."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import Cluster
from runs import metrics

ROOT = Path(__file__).parents[2]
STAGE = "onevision"
NUM_STEPS = 8
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
RECIPE = (
    "+recipe=tiny",
    "~stages.projector",
    f"stages.{STAGE}.max_steps={NUM_STEPS}",
    f"stages.{STAGE}.optimizer.epsilon=1e-4",  # large: Adam's first updates have the gradient's sign, however small
)


class Job:
    """One submission of the real template."""

    def __init__(self, cluster: Cluster, run: Path, *overrides: str, options: tuple[str, ...] = ("--nodes=2",)):
        self.cluster, self.run = cluster, run
        run.parent.mkdir(exist_ok=True, parents=True)
        words = [*options, f"--output={run.parent}/%x-%j.log", "slurm/train.sbatch", *RECIPE, f"run.dir={run}"]
        self.id = cluster.run("sbatch", "--parsable", *words, *overrides, cwd=ROOT).strip()

    def field(self, name: str) -> str:
        """Of `scontrol show job`, such as JobState, Restarts, ExitCode, ExcNodeList."""
        told = self.cluster.run("scontrol", "show", "job", self.id, "--oneliner")
        return next(word.partition("=")[2] for word in told.split() if word.startswith(f"{name}="))

    def out(self) -> str:
        """The job's own log: what the batch script said, and rank 0's progress."""
        [path] = self.run.parent.glob(f"*-{self.id}.log")
        return path.read_text()

    def logs(self) -> str:
        """All that the job and its ranks wrote, for a test that failed."""
        paths = [
            *self.run.parent.glob(f"*-{self.id}.log"),
            *self.run.glob("segments/*/*"),
            *self.run.glob("segments/*.json"),
        ]
        return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in sorted(paths))

    def end(self, state: str = "COMPLETED", seconds: float = 300) -> None:
        self.cluster.wait_until(lambda: self.field("JobState") in ENDS, seconds)
        assert self.field("JobState") == state, self.logs()

    def segments(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted(self.run.glob("segments/*.json"))]

    def outcomes(self) -> list[str]:
        return [segment["outcome"] for segment in self.segments()]

    def rank(self, rank: int) -> int:
        """Process of a rank that runs now; 0 = none. The batch shell and srun have rank 0 in their environment too."""
        marks = {f"SLURM_JOB_ID={self.id}", f"SLURM_PROCID={rank}"}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and marks <= set((entry / "environ").read_text().split("\0")):
                    words = (entry / "cmdline").read_text().split("\0")
                    if Path(words[0]).name.startswith("python") and "llava_train" in words and "job" not in words:
                        return int(entry.name)
        return 0

    @contextmanager
    def held(self, step: int, rank: int = 0) -> Iterator[None]:
        """In the body the run stands still after this many steps or a few more, so that nothing hangs on its speed."""
        self.wait(lambda: len(metrics(self.run)) >= step)
        process = self.rank(rank)
        assert process, self.logs()
        os.kill(process, signal.SIGSTOP)
        assert len(metrics(self.run)) < NUM_STEPS, "the run was over before it was held"
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def bring_limit_near(self, seconds: int) -> None:
        """Its time limit is so near until it has heard of it; what is requeued has time again.

        SLURM looks every 30 seconds, so the signal comes up to 30 seconds late.
        """
        self.cluster.run("scontrol", "update", f"JobId={self.id}", f"EndTime=now+{seconds}")
        self.wait(lambda: "SIGUSR1" in self.out())
        self.cluster.run("scontrol", "update", f"JobId={self.id}", "TimeLimit=60")

    def wait(self, is_due: Callable[[], object]) -> None:
        """Until the first true answer; the job must not have ended by then."""
        deadline = time.monotonic() + 300
        while not is_due():
            assert time.monotonic() < deadline, self.logs()
            assert self.field("JobState") not in ENDS, self.logs()
            time.sleep(0.02)


def losses(run: Path) -> list[float]:
    """Of all steps in order, each logged once."""
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    return [line["loss"] for line in lines]
