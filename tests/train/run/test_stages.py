"""What a run's folder says of a start: its settings, the places that it reads, and the data of what is finished."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from llava_train.config.load import load
from llava_train.model.files.tensor_files import Written, file_sha256
from llava_train.ranks.process_group import Ranks
from llava_train.records.identity import identify_again
from llava_train.records.readers.open import open_source
from llava_train.shared.errors import RunError
from llava_train.train.checkpoint import on_disk
from llava_train.train.run.stages import all_stages, data_differences, finish, pending_stages, resume_meta

ALONE = Ranks(0, 1, torch.device("cpu"))


def config(*words: str):
    return load(["+recipe=tiny", "~stages.projector", "data.root=d", "run.dir=run", "model.init=base", *words])


def records(*answers: str) -> None:
    turns = [[{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": answer}] for answer in answers]
    Path("d/q.json").write_text(json.dumps([{"conversations": turn} for turn in turns]))


def known(**files: str) -> dict:
    return identify_again({name: open_source(file, name) for name, file in files.items()}, {})


def meta(*words: str, held_out: dict | None = None) -> dict:
    made = config(*words)
    [stage] = all_stages(made)
    samples = {"data": {"q": 2}, "records": known(q="d/q.json"), "held_out_records": held_out or {}}
    return resume_meta(made, stage, 1) | samples


@pytest.fixture(autouse=True)
def finished(tmp_path, monkeypatch):
    """A run that was finished with the words that `again` gives, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for folder in ("d", "base", "run/onevision/hf"):
        Path(folder).mkdir(parents=True)
    Path("base/config.json").write_text("{}")
    Path("base/model.safetensors").write_text("weights")
    records("one", "two")
    [stage] = all_stages(config("data.file=d/q.json"))
    finish(stage, meta("data.file=d/q.json"), {})


def again(*words: str, data: str = "d/q.json") -> None:
    assert pending_stages(config(f"data.file={data}", *words), ALONE) == []


def test_what_is_done_says_on_which_data(capsys):
    again()
    out = capsys.readouterr().out
    assert out.startswith("1 of 1 stages were finished before: all is done\n")
    assert f"stage 1/1 onevision: 2 samples of q, from {Path('d/q.json').resolve()}" in out


def test_a_finished_stage_says_that_its_data_changed(capsys):
    records("one", "two", "three")
    again()
    out = capsys.readouterr().out
    assert "stage 1/1 onevision was trained on other data: data.file: source q: its records have changed" in out
    assert "(2 records then, 3 now)\n    -> to train on what is there now: run.dir=DIR" in out


def test_a_finished_stage_whose_export_is_gone_says_how_to_write_it_again(capsys):
    Path("run/onevision/hf").rmdir()
    again()
    out = capsys.readouterr().out
    assert "run/onevision/hf is gone\n" in out
    assert "export run.dir=run stage=onevision merge=true out=run/onevision/hf" in out


def test_another_spelling_is_nothing_and_another_place_of_the_same_is_allowed(capsys):
    again("model.init=./base/", data=str(Path("d/q.json").resolve()))
    shutil.copytree("base", "moved")
    shutil.copy("d/q.json", "d/other.json")
    again("model.init=moved", data="d/other.json")
    assert "other data" not in capsys.readouterr().out


@pytest.mark.parametrize(("place", "key"), [("d/other.json", "data.file: source other"), ("moved", "model.init")])
def test_another_place_of_something_else_is_refused(place, key):
    shutil.copytree("base", "moved")
    Path("moved/model.safetensors").write_text("others!")
    Path("d/other.json").write_text("[]")
    words = {"d/other.json": {"data": place}, "moved": {"data": "d/q.json"}}[place]
    with pytest.raises(RunError, match=rf"not allowed:\n    {key}"):
        again(f"model.init={'moved' if place == 'moved' else 'base'}", **words)


def test_a_checkpoint_tells_that_a_place_is_another(capsys):
    step = Path("run/onevision/step-00000001")
    step.mkdir()
    Path("run/onevision/finished.json").unlink()
    (step / "state.json").write_text(on_disk.manifest_text({"meta": meta("data.file=d/q.json")}, {}))
    shutil.copytree("base", "moved")
    assert len(pending_stages(config("data.file=d/q.json", "model.init=moved"), ALONE)) == 1
    out = capsys.readouterr().out
    assert f"changed since the checkpoint: model.init: {Path('base').resolve()} -> {Path('moved').resolve()}" in out
    assert "of the same content" in out


def test_a_checkpoint_compares_the_records_of_each_source():
    made = config("data.file=d/q.json", "evaluation.file=d/held.json", "evaluation.every=1")
    [stage] = all_stages(made)
    shutil.copy("d/q.json", "d/held.json")
    saved = meta("data.file=d/q.json", held_out=known(held="d/held.json"))
    assert data_differences(made, stage, saved, saved) == []
    records("one", "TWO")
    [line] = data_differences(made, stage, saved, meta("data.file=d/q.json", held_out=saved["held_out_records"]))
    assert line.startswith("data.file: source q: its records have changed since the checkpoint")
    now = saved | {"held_out_records": known(held="d/q.json")}
    [line] = data_differences(made, stage, saved, now)
    assert line.startswith("evaluation.file: source held: its records have changed")


def test_a_moved_run_finds_the_start_within_it():
    start, stage = Path("run/projector/hf"), Path("run/onevision")
    start.mkdir(parents=True)
    (start / "model.safetensors").write_text("weights")
    files = {"model.safetensors": asdict(Written(7, file_sha256(start / "model.safetensors")))}
    (stage / "base").mkdir()
    content = {"start": {"folder": on_disk.start_name(stage, start.resolve()), "files": files}}
    (stage / "base/manifest.json").write_text(on_disk.manifest_text(content, {}))
    Path("run").rename("moved")
    base = Path("moved/onevision/base")
    assert on_disk.damage(base) == ""
    assert on_disk.start_of(base) == (Path("moved/projector/hf").resolve(), files)
    assert on_disk.start_name(Path("moved/onevision"), Path("base").resolve()) == str(Path("base").resolve())
