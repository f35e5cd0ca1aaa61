"""`check`'s look at records: which are looked at, what is told of them, and within which bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llava_train.cli.main import main
from llava_train.config.load import load
from llava_train.data.preview import spot_check
from llava_train.data.preview.spot_check import look_at_records
from llava_train.records.readers import json_lines, reader

TURNS = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
SOUND, MISSING = {"image": "a.png", "conversations": TURNS}, {"image": "none.png", "conversations": TURNS}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 8)).save("a.png")
    return tmp_path


def words(file: str, *more: str) -> list[str]:
    stages = ["~stages.projector", "stages.onevision.global_batch_size=1"]
    return ["+recipe=tiny", f"data.file={file}", "data.root=.", *stages, *more]


def write(name: str, records: list) -> str:
    lines = map(json.dumps, records)
    Path(name).write_text("\n".join(lines) if name.endswith("jsonl") else f"[{','.join(lines)}]")
    return name


def looked(file: str, *more: str) -> spot_check.Look:
    return look_at_records(load(words(file, *more)))


def test_check_looks_at_records_and_says_so(folder, capsys):
    assert main(["check", *words(write("r.json", [SOUND] * 3))]) == 0
    assert capsys.readouterr().out.endswith("looked at 3 records and the headers of 3 images and videos\n")
    write("r.json", [SOUND, MISSING, {**SOUND, "id": "x", "image": ["a.png"] * 2}])
    assert main(["check", *words("r.json")]) == 2
    told = capsys.readouterr().err
    assert "data.file: source r: 2 of 3 records looked at cannot be used: 1 missing file, 1 tag/media mismatch" in told
    assert "record 1: missing file" in told
    assert "record 2 (id x): tag/media mismatch" in told
    assert "-> mend them, or set data.on_error=skip to leave them out" in told
    assert main(["check", *words("r.json", "data.on_error=skip")]) == 0
    assert "left out: source r: 2 of 3 records looked at cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize("record", [{"id": "a"}, MISSING, "text"])
def test_no_record_that_can_be_used_is_a_fault_whatever_the_policy(folder, record):
    (fault,) = looked(write("r.jsonl", [record] * 3), "data.on_error=skip").faults
    assert "3 of 3 records looked at cannot be used" in fault.problem
    assert "on_error" not in fault.remedy


def test_limits_of_media_are_judged(folder):
    (fault,) = looked(write("r.json", [SOUND]), "data.max_pixels=50").faults
    assert "too many pixels (medium 1: 9 x 8 pixels, data.max_pixels is 50" in fault.problem


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_some_of_the_rest_are_drawn_and_the_others_named(folder, name):
    found = looked(write(name, [SOUND] * 150 + [MISSING] * 150))
    assert (found.records, found.media) == (200, 200)
    assert 50 < refused(found) < 100  # of those behind the first hundred, 3 of 4
    assert found.passed == {"r": "all but its first 100 records and 100 of the others"}
    assert looked(name).faults == found.faults  # the same ones each time


def refused(found: spot_check.Look) -> int:
    return int(found.faults[0].problem.removeprefix("source r: ").split(" ")[0])


def test_a_large_file_is_read_no_further_than_its_format_can_seek(folder, monkeypatch):
    monkeypatch.setattr(reader, "COUNT_LIMIT", 10)
    monkeypatch.setattr(json_lines.JsonLines, "count", None)
    found = looked(write("r.jsonl", [SOUND] * 100 + [MISSING] * 900))
    assert found.records in (199, 200)  # behind a byte of the last line there is none
    assert "record behind byte " in found.faults[0].problem
    found = looked(write("r.json", [SOUND] * 100 + [MISSING] * 900))
    assert (found.records, found.faults) == (100, [])
    assert str(found).endswith("not looked at: r (all behind its first 100 records, to which its format does not lead)")


def test_media_and_time_are_shared_by_the_sources(folder, monkeypatch):
    mixture = "".join(f"  s{i}: {{file: {write(f's{i}.jsonl', [SOUND] * 20)}}}\n" for i in range(5))
    Path("mix.yaml").write_text(f"sources:\n{mixture}")
    monkeypatch.setattr(spot_check, "MEDIA", 25)
    found = looked("mix.yaml")
    assert (found.records, found.media, found.faults) == (100, 25, [])
    assert found.passed["s4"] == "15 images and videos"
    assert str(found).endswith("s2 (15 images and videos), and 2 more sources")
    monkeypatch.setattr(spot_check, "SECONDS", -1.0)
    found = looked("mix.yaml")
    assert found.records == 0
    assert found.passed["s0"] == "all but 0 records, for want of time"


@pytest.mark.parametrize("sampling", ["first:5", "last:5", "random:50%"])
def test_what_a_mixture_does_not_take_is_not_judged(folder, sampling):
    records = {"first:5": [SOUND] * 5 + [MISSING], "last:5": [MISSING] + [SOUND] * 5, "random:50%": [SOUND] * 6}
    write("r.jsonl", records[sampling])
    Path("mix.yaml").write_text(f"sources: {{r: {{file: r.jsonl, sampling: '{sampling}'}}}}")
    found = looked("mix.yaml")
    assert (found.records, found.faults, found.passed) == (3 if sampling == "random:50%" else 5, [], {})


def test_a_source_that_breaks_off_is_a_fault(folder):
    Path("r.jsonl").write_text(json.dumps(SOUND))
    config = load(words("r.jsonl"))
    Path("r.jsonl").unlink()
    Path("r.jsonl").mkdir()
    Path("r.jsonl/cut.tar").write_bytes(b"x" * 600)
    (fault,) = look_at_records(config).faults
    assert "cut.tar" in fault.problem
