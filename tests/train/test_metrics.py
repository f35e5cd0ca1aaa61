"""Trackers of a stage that is stopped and resumed: one run, each step once."""

import sys
from types import SimpleNamespace

import pytest

from llava_train.config.schema import LogConfig
from llava_train.train.folders import read_metrics
from llava_train.train.metrics import Metrics


def log(folder, tracker: str, first_step: int, *steps: int) -> None:
    with Metrics(folder, "run/stage", "1/1 stage", first_step, 9, LogConfig(every=1, trackers=[tracker])) as metrics:
        for step in steps:
            metrics.log({"step": step, "loss": 1.0 / step, "tokens_per_second": 1.0})


def test_tensorboard_goes_on_and_shows_each_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log(tmp_path, "tensorboard", 0, 1, 2, 3, 4)
    log(tmp_path, "tensorboard", 2, 3, 4, 5)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard/run-stage")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_wandb_resumes_the_run_of_the_stage(tmp_path, monkeypatch):
    begun = []

    def init(**settings):
        begun.append(settings)
        return SimpleNamespace(log=lambda values, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for folder, first_step in ((tmp_path / "a", 0), (tmp_path / "a", 2), (tmp_path / "b", 0)):
        log(folder, "wandb", first_step, first_step + 1)
    first, resumed, other = begun
    assert first["id"] == resumed["id"] != other["id"]
    assert resumed["resume"] == "allow"


def test_a_line_tells_when_it_was_and_of_how_many_steps(tmp_path):
    log(tmp_path, "tensorboard", 0, 1)
    [line] = read_metrics(tmp_path)
    assert line["num_steps"] == 9
    assert line["time"] > 1.7e9
