"""JSON lists and JSONL in place: where each record stands, what damage is told, and how much memory it takes."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from llava_train.config.rules.files import count_records
from llava_train.records.readers import json_list
from llava_train.records.readers.open import open_source, record_of
from llava_train.records.record import BadRecord
from llava_train.shared.errors import DataError

RECORDS = [
    {"id": 1, "text": "plain"},
    {"id": "zwei", "text": 'Maß, 雪 and 😀 "quoted" \\ ] } , [ {'},
    {"escaped": "\u2028 😀"},
    {},
    {"deep": [[1.5e-7, -12, True, None, {"a": []}]]},
    [],
    "a text",
    123456,
    -1e-5,
    False,
]


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes, name: str = "a.json"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def assert_in_place(path):
    """Every record is what json makes of it, and stands where its offset says."""
    raws, content = list(open_source(path, "s")), path.read_bytes()
    assert [record_of(raw) for raw in raws] == RECORDS
    for raw in raws:
        assert content[raw.offset : raw.offset + len(raw.content)] == raw.content
    assert open_source(path, "s").count() == len(RECORDS)


@pytest.mark.parametrize("window", [*range(1, 40), 2**20])
def test_list_is_read_in_place_wherever_a_window_ends(file, window, monkeypatch):
    monkeypatch.setattr(json_list, "WINDOW", window)
    assert_in_place(file(json.dumps(RECORDS, ensure_ascii=False)))
    assert_in_place(file(json.dumps(RECORDS, indent=1)))
    assert_in_place(file("\ufeff\r\n" + json.dumps(RECORDS, ensure_ascii=False, indent="\t") + " \n\n"))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n \n\n", " \n\t"])
def test_lines_are_read_in_place(file, mark, end):
    lines = end.join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    assert_in_place(file(mark + lines, "a.jsonl"))
    assert_in_place(file(mark + end + lines + end, "a.jsonl"))


def test_list_may_be_empty(file):
    assert list(open_source(file(" [ ] "), "s")) == list(open_source(file("", "a.jsonl"), "s")) == []


DAMAGE = {
    "": "holds no list of records",
    '{"id": 1}': "holds no list of records",
    "[": "record 0, byte 1: Expecting value",
    '[{"a": "é"}, {"b": }]': "record 1, byte 20: Expecting value",
    '[{"a": 1}, {"b"': "record 1, byte 15: Expecting ':' delimiter",
    '[{"a": 1}, {"b": "': "record 1, byte 17: Unterminated string starting at",
    '[{"a": 1} {"b": 2}]': "record 0, byte 10: no ',' or ']' behind it",
    '[{"a": 1}, ]': "record 1, byte 11: Expecting value",
    '[{"a": 1}': "record 0, byte 9: no ',' or ']' behind it",
    "[1] 2": "byte 4: something stands behind the list",
    b'[{"a": "\xe9"}]': "byte 8: is not UTF-8",
    b'[{"a": "\xc3': "byte 8: is not UTF-8",
}


@pytest.mark.parametrize("window", [1, 3, 2**20])
@pytest.mark.parametrize(("content", "told"), DAMAGE.items())
def test_damage_of_a_list_is_told_by_record_and_byte(file, content, told, window, monkeypatch):
    monkeypatch.setattr(json_list, "WINDOW", window)
    with pytest.raises(DataError, match=r"s, record -: unreadable file .*a\.json") as error:
        list(open_source(file(content), "s"))
    assert error.value.detail.endswith(told)


def test_depth_that_no_parser_bears_is_told(file):
    with pytest.raises(DataError, match="record 0, byte 1: nested too deep"):
        list(open_source(file("[" * 100_000), "s"))


def test_damage_leaves_the_records_before_it(file):
    records = iter(open_source(file('[{"a": 1}, {"b": 2}, {"c": }]'), "s"))
    assert [record_of(next(records)) for _ in range(2)] == [{"a": 1}, {"b": 2}]
    with pytest.raises(DataError):
        next(records)


@pytest.mark.parametrize("line", [b'{"id": ', b'{"id": "\xff"}', b"{} {}", b"[" * 100_000])
def test_bad_line_is_one_bad_record_in_its_place(file, line):
    first, bad, last = map(record_of, open_source(file(b'{"id": 1}\n' + line + b'\n{"id": 2}', "a.jsonl"), "s"))
    assert isinstance(bad, BadRecord)
    assert str(bad).startswith("no JSON: ")
    assert (first, last) == ({"id": 1}, {"id": 2})


def test_a_users_object_in_place_of_a_path_stays_one(file):
    entry = {"path": "/etc/passwd", "offset": 0, "size": 9, "name": "x"}
    (raw,) = open_source(file(json.dumps([{"image": [entry]}])), "s")
    assert record_of(raw) == {"image": [entry]}


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"s, record -: unreadable file .*a\.json"):
        open_source(tmp_path / "a.json", "s").count()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    path, number = tmp_path / name, 20_000
    with path.open("w") as lines:
        line = json.dumps({"text": "é" * 250, "n": 1}, ensure_ascii=False)
        lines.write("[" * (name == "a.json"))
        for i in range(number):
            lines.write(line + ("," * (name == "a.json" and i < number - 1)) + "\n")
        lines.write("]" * (name == "a.json"))
    assert path.stat().st_size > 8 * json_list.WINDOW
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(path, "s")) == number
        assert tracemalloc.get_traced_memory()[1] < 8 * json_list.WINDOW
    finally:
        tracemalloc.stop()


def test_a_record_may_be_larger_than_a_window(file):
    record = {"text": "x" * (3 * json_list.WINDOW)}
    assert [record_of(raw) for raw in open_source(file(json.dumps([record, 1])), "s")] == [record, 1]


def test_a_folder_of_lines_is_read_file_by_file(file, tmp_path):
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "README.md", "stats.json"):
        file(f'{{"id": "{name}"}}\n\nno JSON\n', name)
    found = [record_of(raw) for raw in open_source(tmp_path, "s")]
    assert [record if isinstance(record, dict) else str(record)[:19] for record in found] == [
        {"id": "a.jsonl"},
        "a.jsonl, byte 19: n",
        {"id": "b.jsonl"},
        "b.jsonl, byte 19: n",
    ]
    assert open_source(tmp_path, "s").count() == count_records(tmp_path) == 4


def test_a_folder_of_lines_has_splits(file, tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl"):
        file(f'{{"id": "{name}"}}', name)
    with pytest.raises(DataError, match=r"holds splits test, train: name the one to read"):
        list(open_source(tmp_path, "s"))
    assert [record_of(raw)["id"][:11] for raw in open_source(f"{tmp_path}@train", "s")] == [
        "train-00000",
        "train-00001",
    ]
    (tmp_path / "train-00000-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match="lacks 1 of 2 shards of train"):
        list(open_source(f"{tmp_path}@train", "s"))


def test_records_of_a_folder_say_nothing_of_other_files(file, tmp_path):
    place = {"path": "/etc/passwd", "offset": 0, "size": 9, "name": "x"}
    file(json.dumps({"image": [place]}), "a.jsonl")
    (bad,) = open_source(tmp_path, "s")
    assert str(record_of(bad)) == "a.jsonl, byte 0: 'image' is neither a path nor a list of paths"
