"""What a run tells: a line of JSON per step, a progress bar, and trackers where asked. Rank 0 alone writes."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from llava_train.config.schema import LogConfig
from llava_train.shared.console import console
from llava_train.shared.json_files import to_json
from llava_train.shared.whole_files import write_whole
from llava_train.train.checkpoint.run_folder import METRICS, read_metrics
from llava_train.train.checkpoint.state import HELD_OUT_LOSS

WANDB_ID = "wandb-id"  # file of a stage
WANDB_SECONDS = 30  # that its server is waited for
PLAIN_LINE_SECONDS = 10.0  # between progress lines where there is no terminal


class Tracker(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Weights & Biases; offline, to be synced later, where it has no key for its host or does not reach it.

    Its own environment variables win over what is set here. A resumed stage goes on in its run, whose id is drawn at
    the stage's first start and kept in its folder; steps that it repeats are there already, and wandb leaves them out.
    """

    def __init__(self, folder: Path, name: str, _first_step: int):
        import wandb

        mode: Any = wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        try:
            self._run = wandb.init(mode=mode, **_defaults(folder, name))
        except wandb.Error as error:
            if mode != "online":
                raise
            _tell("wandb is not reached, and logs offline", error)
            wandb.teardown()  # its process holds the id of the run that was not begun
            self._run = wandb.init(mode="offline", **_defaults(folder, name))

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _defaults(folder: Path, name: str) -> dict[str, Any]:
    """Arguments of `wandb.init` that no variable of wandb's sets."""
    path = folder / WANDB_ID
    if not path.exists():
        write_whole(path, secrets.token_hex(8))
    given: dict[str, dict[str, Any]] = {
        "WANDB_PROJECT": {"project": "llava_train"},
        "WANDB_NAME": {"name": name},
        "WANDB_RUN_ID": {"id": path.read_text(encoding="utf-8")},
        "WANDB_DIR": {"dir": str(folder)},
        "WANDB_RESUME": {"resume": "allow"},
        "WANDB_INIT_TIMEOUT": {"settings": {"init_timeout": WANDB_SECONDS}},
    }
    return {k: v for variable, argument in given.items() if not os.environ.get(variable) for k, v in argument.items()}


class TensorBoard:
    """A resumed stage goes on in the same folder; what was logged after `first_step` gives way to its repetition."""

    def __init__(self, folder: Path, name: str, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard" / name.replace("/", "-")
        self._writer = SummaryWriter(place, purge_step=first_step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


TRACKERS: dict[str, type[Wandb] | type[TensorBoard]] = {"wandb": Wandb, "tensorboard": TensorBoard}


class Trackers:
    """The trackers of a stage. One that fails is given up and told; it never ends the training."""

    def __init__(self, folder: Path, name: str, first_step: int, names: Sequence[str]):
        self._trackers: dict[str, Tracker] = {}
        for tracker in names:
            with self._unharmed(tracker):
                self._trackers[tracker] = TRACKERS[tracker](folder, name, first_step)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._unharmed(name):
                tracker.log(values, step)

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._unharmed(name):
                tracker.close()

    @contextmanager
    def _unharmed(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of all kinds: wandb has a dozen that share no other base, and none may end a run
            self._trackers.pop(name, None)
            _tell(f"{name} failed, and the run goes on without it", error)


def _tell(told: str, error: Exception) -> None:
    """On one line, with the error's kind."""
    line = f"{told}: {type(error).__name__}: {' '.join(str(error).split())}"
    console().print(line, highlight=False, markup=False, soft_wrap=True)


class Metrics:
    """The log of one stage. As a context it opens the bar and closes the trackers.

    Lines of steps after `first_step` are from a run that was stopped before its next checkpoint; they are dropped, and
    written again as the steps are.
    """

    def __init__(self, folder: Path, name: str, label: str, first_step: int, num_steps: int, log: LogConfig):
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step]
        write_whole(folder / METRICS, "".join(to_json(line) + "\n" for line in kept))
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._every, self._num_steps = log.every, num_steps
        self._trackers = Trackers(folder, name, first_step, log.trackers)
        self._console = console()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(label, total=num_steps, completed=first_step, told="")
        self._label, self._started, self._first_step, self._last_line = label, time.monotonic(), first_step, 0.0

    def __enter__(self) -> Metrics:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        self._trackers.close()

    def log(self, values: dict[str, float]) -> None:
        """`values` has `step` (done, from 1), `loss`, `tokens_per_second` and whatever else is worth keeping."""
        step = int(values["step"])
        if step % self._every == 0 or step == self._num_steps or HELD_OUT_LOSS in values:
            about = {"num_steps": self._num_steps, "time": time.time()}
            self._file.write(to_json(values | about) + "\n")
            self._file.flush()
            self._trackers.log({k: v for k, v in values.items() if k != "step"}, step)
        told = f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s"
        self._progress.update(self._task, completed=step, told=told)
        if not self._console.is_terminal:
            self._plain_line(step, told)

    def _plain_line(self, step: int, told: str) -> None:
        now = time.monotonic()
        if step < self._num_steps and now - self._last_line < PLAIN_LINE_SECONDS:
            return
        self._last_line = now
        left = (now - self._started) / max(1, step - self._first_step) * (self._num_steps - step)
        self._console.print(f"{self._label}  step {step}/{self._num_steps}  {told}  {left:.0f} s left", highlight=False)
