"""The log is strict JSON; trackers of a stage that is stopped and resumed: one run, each step once."""

import json
import os
import sys
from types import SimpleNamespace

import pytest

from llava_train.config.schema import LogConfig
from llava_train.train.checkpoint import on_disk
from llava_train.train.checkpoint.run_folder import METRICS, read_metrics
from llava_train.train.report.metrics import Metrics


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


class Refused(Exception):
    """wandb's own kinds of errors have no base but this one."""


class FakeWandb(SimpleNamespace):
    """Stands in for wandb: how it was begun, and what fails."""

    Error = Refused

    def __init__(self, has_key=False, mode="online", **fails: Exception):
        self.begun, self.logged, self.has_key, self.mode, self.fails = [], [], has_key, mode, fails

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, prompt, verify):
        assert not prompt
        assert not verify
        return self.has_key

    def init(self, **settings):
        self.begun.append(settings)
        self._fail(settings["mode"])
        return self

    def log(self, values, step):
        self._fail("log")
        self.logged.append(step)

    def finish(self):
        self._fail("finish")

    def teardown(self):
        self.logged.append("teardown")

    def _fail(self, act):
        if act in self.fails:
            raise self.fails[act]


@pytest.fixture
def use(monkeypatch):
    """Puts a fake in wandb's place, with none of its variables set but these."""

    def put(fake: FakeWandb, **variables: str) -> FakeWandb:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return put


def test_wandb_goes_on_in_the_run_of_the_stage_and_a_stage_begun_anew_is_a_new_run(tmp_path, use):
    wandb = use(FakeWandb())
    log(tmp_path / "a", "wandb", 0, 1)
    (tmp_path / "a").rename(tmp_path / "moved")
    log(tmp_path / "moved", "wandb", 2, 3)
    log(tmp_path / "a", "wandb", 0, 1)
    first, resumed, anew = wandb.begun
    assert first["id"] == resumed["id"] != anew["id"]
    assert resumed["resume"] == "allow"
    assert first["project"] == "llava_train"


@pytest.mark.parametrize(
    ("has_key", "mode", "expected"),
    [
        (True, "online", "online"),
        (False, "online", "offline"),
        (False, "offline", "offline"),
        (True, "disabled", "disabled"),
    ],
)
def test_wandb_is_offline_where_it_has_no_key_and_as_it_is_set_otherwise(tmp_path, use, has_key, mode, expected):
    wandb = use(FakeWandb(has_key, mode))
    log(tmp_path, "wandb", 0, 1)
    assert [settings["mode"] for settings in wandb.begun] == [expected]


def test_wandbs_own_variables_win(tmp_path, use):
    own = {"PROJECT": "mine", "NAME": "named", "RUN_ID": "id1", "DIR": "d", "RESUME": "must", "INIT_TIMEOUT": "9"}
    wandb = use(FakeWandb(), **{f"WANDB_{name}": value for name, value in own.items()})
    log(tmp_path, "wandb", 0, 1)
    assert wandb.begun == [{"mode": "offline"}]


def test_wandb_that_is_not_reached_logs_offline(tmp_path, use, capsys):
    wandb = use(FakeWandb(has_key=True, online=Refused("timed\nout [x]")))
    log(tmp_path, "wandb", 0, 1)
    assert [settings["mode"] for settings in wandb.begun] == ["online", "offline"]
    assert wandb.logged == ["teardown", 1]
    assert "wandb is not reached, and logs offline: Refused: timed out [x]" in capsys.readouterr().out


@pytest.mark.parametrize("act", ["offline", "log", "finish"])
@pytest.mark.parametrize("error", [Refused("no"), ConnectionResetError("no"), ValueError("no"), ImportError("no")])
def test_a_tracker_that_fails_ends_nothing(tmp_path, use, capsys, act, error):
    wandb = use(FakeWandb(**{act: error}))
    log(tmp_path, "wandb", 0, 1, 2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    told = f"wandb failed, and the run goes on without it: {type(error).__name__}: no"
    assert capsys.readouterr().out.count(told) == 1  # and is not tried again
    assert wandb.logged == ([1, 2] if act == "finish" else [])


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
    written = on_disk.manifest_text({"state": {"held_out": [(1, number)]}, "metrics": {"loss": number}}, {})
    (folder / "state.json").write_text(written)
    assert json.loads(written, parse_constant=refuse)["metrics"] == {"loss": None}
    assert on_disk.damage(folder) == ""
