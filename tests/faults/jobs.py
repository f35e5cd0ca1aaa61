"""Runs of the tiny recipe that a test breaks and continues, and what must come out of them."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver, get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import ClassVar

import commands
import pytest
import torch
from runs import free_port, metrics, rank_environ
from safetensors.torch import load_file

NUM_STEPS = 12
STAGE = "onevision"
# Adam's first updates have the sign of the gradient however small it is; the larger epsilon keeps rounding small.
_WORDS = (
    "+recipe=tiny",
    "~stages.projector",
    f"stages.{STAGE}.max_steps={NUM_STEPS}",
    f"stages.{STAGE}.global_batch_size=9",
    f"stages.{STAGE}.optimizer.epsilon=1e-4",
    f"stages.{STAGE}.pack.max_tokens=400",
    f"stages.{STAGE}.pack.max_tiles=12",
)
PROJECTOR_ONLY = (f"stages.{STAGE}.learning_rate={{vision_tower:frozen,language_model:frozen}}",)
_CONTEXT = get_context("forkserver")


def start_server() -> None:
    """The process that all jobs are forked from, with what they import."""
    path = [
        str(Path(__file__).parent),
        os.environ.get("PYTHONPATH", ""),
    ]  # 3.11 passes no sys.path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        _CONTEXT.set_forkserver_preload(["commands"])
        forkserver.ensure_running()


def zero(level: int, offload: bool = False) -> str:
    offloaded = f",offload_optimizer:{offload},offload_parameters:{offload and level == 3}".lower()
    return f"stages.{STAGE}.zero={{level:{level}{offloaded}}}"


def checkpoints(**values: object) -> str:
    listed = ",".join(f"{key}:{str(value).lower()}" for key, value in values.items())
    return f"stages.{STAGE}.checkpoint={{{listed}}}"


class Job:
    """One command on some ranks, each a process of its own without a launcher, as srun starts them."""

    started: ClassVar[list["Job"]] = []

    def __init__(self, folder: Path, *overrides: str, num_ranks: int = 1):
        self.folder, self.stage = folder, folder / STAGE
        words = [*_WORDS, f"run.dir={folder}", *overrides]
        port, self._logs, self.ranks = free_port(), [], []
        for rank in range(num_ranks):
            with NamedTemporaryFile(delete=False, suffix=".log") as log:
                self._logs.append(Path(log.name))
            environ = rank_environ(rank, num_ranks, port) if num_ranks > 1 else {}
            process = _CONTEXT.Process(target=commands.run, args=(words, environ, log.name))
            process.start()
            self.ranks.append(process)
        self.started.append(self)

    def out(self, rank: int = 0) -> str:
        return self._logs[rank].read_text()

    def wait(self, is_due: Callable[[], object]) -> None:
        """Returns at the first true answer; no rank must have ended by then."""
        while not is_due():
            assert all(process.is_alive() for process in self.ranks), "\n".join(map(self.out, range(len(self.ranks))))
            time.sleep(0.003)

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: len(metrics(self.folder)) >= step)

    def kill(self) -> None:
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()

    def everything(self) -> list[int]:
        """The ranks and all processes below them: what scancel signals."""
        parents = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # gone meanwhile
                if entry.name.isdigit():
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found = [process.pid for process in self.ranks]
        for pid in found:  # grows while it is walked
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def signal(self, number: signal.Signals, *pids: int) -> None:
        for pid in pids or [process.pid for process in self.ranks]:
            os.kill(pid, number)

    def end(self, *codes: int, timeout: float = 120) -> str:
        """What rank 0 printed, at the end of all; `codes`: of each rank, all 0 by default."""
        for process in self.ranks:
            process.join(timeout)
        found = tuple(process.exitcode for process in self.ranks)
        if None in found:
            self.kill()
        assert found == (codes or (0,) * len(self.ranks)), "\n".join(map(self.out, range(len(self.ranks))))
        return self.out()


def losses(folder: Path) -> list[float]:
    """Of all steps in order; each is logged once."""
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    return [line["loss"] for line in lines]


def counts(folder: Path) -> list[tuple]:
    """Samples, tokens and labels of each step: those of other samples would differ."""
    return [(line["num_samples"], line["num_tokens"], line["num_supervised"]) for line in metrics(folder)]


def assert_identical(folder: Path, unbroken: Path) -> None:
    """Bit for bit: every loss, and the weights at the end."""
    assert losses(folder) == losses(unbroken)
    assert counts(folder) == counts(unbroken)
    ours, theirs = (load_file(f / STAGE / "hf/model.safetensors") for f in (folder, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def step_folders(folder: Path) -> list[Path]:
    return sorted((folder / STAGE).glob("step-????????"))
