"""The log is strict JSON; trackers of a stage that is stopped and resumed: one run, each step once."""

import json
import sys
from types import SimpleNamespace

import pytest

from llava_train.config.schema import LogConfig
from llava_train.train import checkpoint
from llava_train.train.folders import METRICS, read_metrics
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


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_written_is_json_to_every_reader(tmp_path, number):
    with Metrics(tmp_path, "run/stage", "1/1 stage", 0, 9, LogConfig(every=1, trackers=[])) as metrics:
        metrics.log({"step": 1, "loss": number, "tokens_per_second": 1.0})
    [line] = (tmp_path / METRICS).read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["loss"] is None

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    written = checkpoint.manifest_text({"state": {"held_out": [(1, number)]}, "metrics": {"loss": number}}, {})
    (folder / "state.json").write_text(written)
    assert json.loads(written, parse_constant=refuse)["metrics"] == {"loss": None}
    assert checkpoint.damage(folder) == ""
