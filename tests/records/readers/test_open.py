"""What is common to all formats: the kind of a path, what is taken of a source, and its errors."""

from __future__ import annotations

import json
import pickle

import pytest
from in_every_format import NUMBERS, write_parquet, write_tar

from llava_train.config.mixture import SourceConfig, file_sources, load_mixture
from llava_train.config.rules.files import source_problem
from llava_train.data.samples.sampled_records import sampled_records
from llava_train.records.file_formats import format_of, split_of
from llava_train.records.readers.open import open_source, record_of
from llava_train.records.record import BadRecord
from llava_train.shared.errors import DataError


def test_table_and_folder_are_read_with_bad_rows_in_their_places(tmp_path):
    (tmp_path / "q.csv").write_text("image,answer,split\na.png,1,train\nb.png,,train\nc.png,3,test\n")
    records = [record_of(raw) for raw in open_source(f"{tmp_path / 'q.csv'}@train", "s")]
    assert records[0]["image"] == ["a.png"]
    assert isinstance(records[1], BadRecord)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "1.jpg").write_bytes(b"")
    source = open_source(tmp_path, "s")
    assert [record_of(raw)["image"] for raw in source] == ["fox/1.jpg"]
    assert source.count() == 1
    assert source.files() == [tmp_path / "fox" / "1.jpg", tmp_path / "q.csv"]
    assert open_source(f"{tmp_path / 'q.csv'}@train", "s").count() == len(records) == 2


def test_source_crosses_process_borders(tmp_path):
    source = pickle.loads(pickle.dumps(open_source(write_tar(tmp_path), "s")))
    assert source.count() == len(NUMBERS)


@pytest.mark.parametrize("name", ["a.txt", "a.json.gz", "a"])
def test_unknown_kinds_are_refused_with_what_is_allowed(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    told = "is compressed: unpack it" if name.endswith("gz") else "is no record file; allowed: .json .jsonl .csv"
    with pytest.raises(DataError, match=told):
        open_source(tmp_path / name, "s").count()
    problem, remedy = source_problem(SourceConfig(str(tmp_path / name), str(tmp_path)), own=False)
    assert told in problem
    assert "docs/data.md" in remedy


def test_split_stands_behind_a_folder_that_has_no_such_name(tmp_path):
    assert split_of(tmp_path / "a" / "b@train") == (tmp_path / "a" / "b", "train")
    (tmp_path / "images@2x").mkdir()
    assert split_of(tmp_path / "images@2x") == (tmp_path / "images@2x", "")
    assert split_of("a@b/q.json") == (split_of("a@b/q.json")[0], "")
    assert format_of(tmp_path / "images@2x") == "pictures"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.tar", "tars", "pictures"])
def test_split_of_what_has_none_is_refused(tmp_path, name):
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_bytes(b"")
    if name == "tars":
        (tmp_path / name / "a.tar").write_bytes(b"")
    told = "has no splits, so none called train"
    with pytest.raises(DataError, match=told):
        list(open_source(f"{tmp_path / name}@train", "s"))
    assert told in source_problem(SourceConfig(f"{tmp_path / name}@train", str(tmp_path)), own=False)[0]


def test_check_tells_of_splits_and_shards_without_reading(tmp_path):
    write_parquet(tmp_path)
    source = SourceConfig(str(tmp_path), str(tmp_path))
    assert source_problem(source, own=False) == ("", "")
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"no Parquet at all")
    assert "name the one to read" in source_problem(source, own=False)[0]
    assert source_problem(SourceConfig(f"{tmp_path}@test", str(tmp_path)), own=False) == ("", "")
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    assert "lacks 1 of 2 shards" in source_problem(SourceConfig(f"{tmp_path}@train", str(tmp_path)), own=False)[0]


def test_media_root_of_a_mixture_is_kept_but_for_folders_of_pictures(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.parquet").write_bytes(b"")
    (tmp_path / "fox").mkdir()
    (tmp_path / "mix.yaml").write_text("sources: {a: {file: shards, media_root: m}, b: {file: fox, media_root: m}}")
    sources = file_sources(str(tmp_path / "mix.yaml"), str(tmp_path))
    assert sources["a"].media_root == str(tmp_path / "m")
    assert sources["b"].media_root == str(tmp_path / "fox")


def test_original_mixture_may_name_any_format(tmp_path):
    (tmp_path / "mix.yaml").write_text(
        "datasets: [{json_path: a.json, sampling_strategy: 'first:5%'}, {json_path: d/b.parquet},"
        " {json_path: shards@train}, {json_path: c.tar}, {json_path: v1.5-data}]"
    )
    found = [(source.file, source.sampling) for source in load_mixture(str(tmp_path / "mix.yaml")).values()]
    assert found == [
        *[("a.json", "first:5%"), ("d/b.parquet", "all"), ("shards@train", "all")],
        *[("c.tar", "all"), ("v1.5-data", "all")],
    ]


@pytest.fixture
def damaged(tmp_path):
    """A thousand records, and behind them damage that only reading them all would find."""
    path = tmp_path / "a.json"
    path.write_text("[" + ", ".join(json.dumps({"id": i}) for i in range(1000)) + ", damage]")
    return path


@pytest.mark.parametrize("sampling", ["all", "first:5"])
def test_file_is_read_as_far_as_records_are_taken(damaged, sampling, monkeypatch):
    monkeypatch.setattr("llava_train.records.readers.json_list.WINDOW", 256)
    records = sampled_records("s", SourceConfig(str(damaged), sampling=sampling), seed=0)
    assert [next(records) for _ in range(5)] == [(i, {"id": i}) for i in range(5)]
    if sampling == "first:5":
        assert next(records, None) is None
    else:
        with pytest.raises(DataError):
            list(records)


@pytest.mark.parametrize("sampling", ["random:30", "random:3%", "last:30", "first:3%", "random:0", "first:0%"])
def test_what_is_taken_comes_in_the_order_of_the_file(tmp_path, sampling):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": i}) for i in range(1000)))
    source = SourceConfig(str(tmp_path / "a.jsonl"), sampling=sampling)
    taken = list(sampled_records("s", source, seed=0))
    assert len(taken) == (0 if sampling.endswith((":0", ":0%")) else 30)
    assert all(record == {"id": position} for position, record in taken)
    assert taken == sorted(taken, key=lambda entry: entry[0])
    if sampling == "random:30":
        assert taken != list(sampled_records("s", source, seed=1))
        assert taken != list(sampled_records("t", source, seed=0))
