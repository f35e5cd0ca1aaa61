"""What identifies a source's records: their content, in whatever place and spelling, and nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_train.records.identity import changed_records, digest, identify, identify_again
from llava_train.records.readers.open import open_source

RECORDS = [
    {"id": i, "conversations": [{"from": "human", "value": f"é {i}?"}, {"from": "gpt", "value": f"answer {i}"}]}
    for i in range(4)
]


def identity(path: Path) -> str:
    source = open_source(path, "s")
    return identify(source, np.array([digest(raw) for raw in source], np.uint64))["identity"]


def write(path: Path, records: list[dict], **form) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(records, **form), encoding="utf-8")
    return path


def test_place_name_and_spelling_of_a_file_change_nothing(tmp_path):
    first = identity(write(tmp_path / "a.json", RECORDS))
    assert identity(write(tmp_path / "b/other.json", RECORDS, indent=3, ensure_ascii=False)) == first
    turned = [dict(reversed(record.items())) for record in RECORDS]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, turned)))
    assert identity(tmp_path / "c.jsonl") == first


def changed_answer(records):
    return [*records[:2], json.loads(json.dumps(records[2]).replace("answer 2", "answer 3")), *records[3:]]


@pytest.mark.parametrize("change", [changed_answer, lambda r: r[::-1], lambda r: r[:-1], lambda r: [*r, r[0]]])
def test_every_change_of_content_order_or_number_shows(tmp_path, change):
    assert identity(write(tmp_path / "b.json", change(RECORDS))) != identity(write(tmp_path / "a.json", RECORDS))


def test_a_line_that_is_no_record_counts_as_it_stands(tmp_path):
    for name, line in (("a", "{broken"), ("b", "{broken!")):
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(RECORDS[0])}\n{line}\n")
    assert identity(tmp_path / "a.jsonl") != identity(tmp_path / "b.jsonl")


def test_a_picture_inside_of_a_table_is_part_of_its_record(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c/a", b"one")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = [{**RECORDS[0], "image": {"bytes": content, "path": "same.png"}}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    assert identity(tmp_path / "a.parquet") != identity(tmp_path / "b.parquet")
    assert identity(tmp_path / "a.parquet") == identity(tmp_path / "c/a.parquet")


def test_a_source_is_read_again_only_where_its_files_are_not_as_before(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", RECORDS)
    source = open_source(path, "a")
    before = {"a": identify(source, np.array([digest(raw) for raw in source], np.uint64))}
    before = json.loads(json.dumps(before))  # as a checkpoint gives it back
    shutil.copy2(path, tmp_path / "moved.json")
    with monkeypatch.context() as patch:
        patch.setattr("llava_train.records.identity.digest", None)
        assert identify_again({"moved": open_source(tmp_path / "moved.json", "moved")}, before) == {
            "moved": before["a"]
        }
    write(path, RECORDS, indent=1)
    assert changed_records(before, identify_again({"a": source}, before)) == []
    write(path, RECORDS[:3])
    [line] = changed_records(before, identify_again({"a": source}, before))
    assert line == "source a: its records have changed since the checkpoint (4 records then, 3 now)"


def test_sources_that_come_and_go_are_named():
    one, two = {"identity": "1", "records": 1, "stamps": []}, {"identity": "2", "records": 2, "stamps": []}
    assert changed_records({"a": one, "b": two}, {"b": two, "c": one}) == [
        "source a: not there now",
        "source c: not there then",
    ]
