"""Parquet files and folders of `datasets`: which columns and cells are read how, and what is refused."""

from __future__ import annotations

import json
import random
import tracemalloc
import uuid
from datetime import date, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_every_format import CELL, NUMBERS, TURNS, write_parquet, write_saved

from llava_train.data.samples.parse import record_id
from llava_train.records.media_file import PackedFile
from llava_train.records.readers import columns
from llava_train.records.readers.open import open_source, record_of
from llava_train.records.record import BadRecord
from llava_train.shared.errors import DataError

ASKED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
PACKED = {"bytes": b"pixels", "path": "a.png"}
CELLS = {
    "struct": (CELL, [PACKED, None, {"bytes": None, "path": "b.png"}, {"bytes": b"x", "path": None}]),
    "list of structs": (pa.list_(CELL), [[PACKED, PACKED], [], None, [{"bytes": None, "path": None}]]),
    "large list": (pa.large_list(CELL), [[PACKED], [PACKED], None, []]),
    "path": (pa.string(), ["a.png", None, "", "b.png"]),
    "paths": (pa.list_(pa.string()), [["a.png", "b.png"], [], None, ["c.png"]]),
    "bytes": (pa.binary(), [b"pixels", None, b"", b"y"]),
    "large bytes": (pa.large_binary(), [b"pixels", None, b"", b"y"]),
    "nothing": (pa.null(), [None] * 4),
}


def plainly(cell) -> list:
    """What a cell should be read as: paths and bytes."""
    if isinstance(cell, list):
        return [entry for one in cell for entry in plainly(one)]
    if isinstance(cell, dict):
        cell = cell["path"] if cell["bytes"] is None else cell["bytes"]
    return [] if cell is None or cell == "" else [cell]


def read(entry):
    return entry.read() if isinstance(entry, PackedFile) else entry


def write(folder, table: pa.Table, kind: str, options: pa.ipc.IpcWriteOptions | None = None):
    """As one Parquet file, or as `datasets` saves a data set, in batches of three rows."""
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=3)
        return folder / "a.parquet"
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema, options=options) as stream:
        stream.write_table(table, max_chunksize=3)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def table(**arrays: tuple[pa.DataType, list]) -> pa.Table:
    return pa.table({name: pa.array(values, kind) for name, (kind, values) in arrays.items()})


@pytest.mark.parametrize("rows_at_once", [1, 2, 64])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["image", "images", "video"])
@pytest.mark.parametrize(("type_", "cells"), CELLS.values(), ids=CELLS)
def test_every_kind_of_cell_is_read(tmp_path, type_, cells, column, kind, rows_at_once, monkeypatch):
    for module in ("arrow", "parquet"):
        monkeypatch.setattr(f"llava_train.records.readers.{module}.NUM_ROWS", rows_at_once)
    path = write(tmp_path, table(**{column: (type_, cells), "conversations": (TURNS, [ASKED] * 4)}), kind)
    found = [record_of(raw) for raw in open_source(path, "s")]
    assert [[read(entry) for entry in record[column.removesuffix("s")]] for record in found] == [
        plainly(cell) for cell in cells
    ]
    assert [record["conversations"] for record in found] == [ASKED] * 4


def test_bytes_of_an_arrow_file_are_read_in_place_and_unpacked_ones_from_memory(tmp_path):
    made = table(image=(CELL, [PACKED, {"bytes": b"z" * 5000, "path": None}] * 4), messages=(TURNS, [ASKED] * 8))
    for compression, in_place in ((None, True), ("zstd", False)):
        (folder := tmp_path / str(compression)).mkdir()
        path = write(folder, made, "arrow", pa.ipc.IpcWriteOptions(compression=compression))
        media = [record_of(raw)["image"][0] for raw in open_source(path, "s")]
        assert [medium.read() for medium in media] == [b"pixels", b"z" * 5000] * 4
        assert [medium.name for medium in media[:2]] == ["a.png", "image of row 1"]
        assert all((medium.content is None) == in_place for medium in media)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_messages_have_typed_parts_with_or_without_their_media(tmp_path, kind):
    part = pa.struct({"type": pa.string(), "text": pa.string(), "image": CELL})
    turns = pa.list_(pa.struct({"role": pa.string(), "content": pa.list_(part), "name": pa.string()}))
    image, text = {"type": "image", "text": None, "image": PACKED}, {"type": "text", "text": "q", "image": None}
    asked = [{"role": "user", "content": [image, text], "name": None}]
    (raw,) = open_source(write(tmp_path, table(messages=(turns, [asked])), kind), "s")
    record = record_of(raw)
    assert [medium.read() for medium in record["image"]] == [b"pixels"]
    parts = [{"type": "image"}, {"type": "text", "text": "q"}]
    assert record["messages"] == [{"role": "user", "content": parts}]


def test_other_columns_are_passed_over_and_nulls_left_out(tmp_path):
    arrays = {"id": (pa.string(), ["x", None]), "width": (pa.int64(), [3, None]), "note": (pa.binary(), [b"", b""])}
    path = write(tmp_path, table(**arrays, conversations=(TURNS, [ASKED, None])), "parquet")
    first, second = map(record_of, open_source(path, "s"))
    assert (first, second) == ({"id": "x", "width": 3, "conversations": ASKED}, {})


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_that_are_passed_over_are_told(tmp_path, kind):
    made = table(score=(pa.float64(), [1]), image_path=(pa.string(), ["x"]), conversations=(TURNS, [ASKED]))
    assert open_source(write(tmp_path, made, kind), "s").passed_over() == "s: passed over columns score, image_path"


def test_files_of_records_that_are_passed_over_are_told(tmp_path):
    made = table(id=(pa.string(), ["x"]), note=(pa.string(), ["x"]), conversations=(TURNS, [ASKED]))
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00001", "test-00000-of-00001", "data/more", "data/.hidden"):
        pq.write_table(made, tmp_path / f"{name}.parquet")
    (tmp_path / "extra.jsonl").write_text("")
    (tmp_path / "README.md").write_text("")
    told = "passed over 3 files of records, such as data/more.parquet, extra.jsonl, test-00000-of-00001.parquet"
    assert open_source(f"{tmp_path}@train", "s").passed_over() == f"s: {told}; columns note"


def test_columns_that_may_hold_media_say_so_without_their_bytes(tmp_path):
    arrays = {"pil": (CELL, [PACKED, None]), "img_file": (pa.string(), [None, "a.png"]), "note": (CELL, [None] * 2)}
    path = write(tmp_path, table(**arrays, conversations=(TURNS, [ASKED, ASKED])), "parquet")
    first, second = map(record_of, open_source(path, "s"))
    assert first == {"pil": {"bytes": {"bytes": 6}, "path": "a.png"}, "conversations": ASKED}
    assert second == {"img_file": "a.png", "conversations": ASKED}


UUID = uuid.UUID("12345678123456781234567812345678")
IDS = {
    "int64": (pa.int64(), 7, "7"),
    "float": (pa.float64(), 7.5, "7.5"),
    "bool": (pa.bool_(), True, "True"),
    "decimal": (pa.decimal128(9, 2), Decimal("7.50"), "7.50"),
    "bytes": (pa.binary(), b"caf\xc3\xa9", "caf\u00e9"),
    "other bytes": (pa.large_binary(), b"\xff\x00", "ff00"),
    "bytes of a UUID": (pa.binary(16), UUID.bytes.replace(b"\x12", b"\xf2"), "f2345678f2345678f2345678f2345678"),
    "UUID": (pa.uuid(), UUID.bytes, str(UUID)),
    "nanoseconds": (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
    "date": (pa.date32(), date(2024, 2, 1), "2024-02-01"),
    "duration": (pa.duration("s"), timedelta(seconds=3), "0:00:03"),
    "categories": (pa.dictionary(pa.int8(), pa.string()), "x", "x"),
    "list": (pa.list_(pa.binary()), [b"x", b"y"], "['x', 'y']"),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(("type_", "identity", "text"), IDS.values(), ids=IDS)
def test_an_id_of_any_type_is_its_text(tmp_path, type_, identity, text, kind):
    values = pa.array([identity, None], type_)
    made = pa.table({"id": values, "answers": values, "conversations": pa.array([ASKED] * 2, TURNS)})
    first, second = map(record_of, open_source(write(tmp_path, made, kind), "s"))
    assert record_id(first, 0) == text
    assert record_id(second, 1) == "1"
    assert str(first["answers"]) == text


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_may_be_stored_as_bytes(tmp_path, kind):
    turns = pa.list_(pa.struct({"from": pa.string(), "value": pa.binary()}))
    said = [
        [{"from": "human", "value": "qu\u00e9".encode()}, {"from": "gpt", "value": value}] for value in (b"a", b"\xff")
    ]
    good, bad = map(record_of, open_source(write(tmp_path, table(conversations=(turns, said)), kind), "s"))
    assert [turn["value"] for turn in good["conversations"]] == ["qu\u00e9", "a"]
    assert str(bad) == "row 1: a text is not UTF-8 (byte 0)"


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_cell_that_is_no_medium_is_one_bad_record(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(f"llava_train.records.readers.{kind}.NUM_ROWS", 1)
    path = write(tmp_path, table(image=(pa.int64(), [None, 3]), conversations=(TURNS, [ASKED] * 2)), kind)
    good, bad = map(record_of, open_source(path, "s"))
    assert good["image"] == []
    assert isinstance(bad, BadRecord)
    assert str(bad).startswith("row 1: image of row 1 is a int; media are paths, bytes")


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    number, size = 64, 2**20
    images = (pa.binary(), [bytes([i]) * size for i in range(number)])
    path = write(tmp_path, table(image=images, conversations=(TURNS, [ASKED] * number)), "parquet")
    del images
    monkeypatch.setattr("llava_train.records.readers.parquet.NUM_ROWS", 2)
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    try:
        most = max(pa.total_allocated_bytes() - before for _ in open_source(path, "s"))
        assert most + tracemalloc.get_traced_memory()[1] < number * size / 4
    finally:
        tracemalloc.stop()


def refused(path) -> str:
    with pytest.raises(DataError, match="s, record -: unreadable file") as error:
        list(open_source(path, "s"))
    return error.value.detail


def test_data_without_conversations_are_refused_with_what_they_hold(tmp_path):
    path = write(tmp_path, table(image=(CELL, []), text=(pa.string(), [])), "parquet")
    assert "has no column conversations or messages; found: image, text" in refused(path)


@pytest.mark.parametrize("name", ["a.parquet", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("left", [0, 7, 300, -8])
def test_damaged_files_are_refused(tmp_path, name, left):
    made = table(image=(CELL, [PACKED] * 4), conversations=(TURNS, [ASKED] * 4))
    path = write(tmp_path, made, "parquet" if name == "a.parquet" else "arrow")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:left])
    assert str(path) in refused(path)


def test_splits_of_a_folder_are_told_and_chosen_by_name(tmp_path):
    made = table(id=(pa.string(), ["x"]), conversations=(TURNS, [ASKED]))
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation"):
        pq.write_table(made, tmp_path / f"{name}.parquet")
    assert f"holds splits test, train, validation: name the one to read, as {tmp_path.name}@test" in refused(tmp_path)
    assert "none called dev" in refused(f"{tmp_path}@dev")
    assert open_source(f"{tmp_path}@train", "s").count() == 2
    assert open_source(f"{tmp_path}@validation", "s").count() == len(list(open_source(f"{tmp_path}@test", "s"))) == 1
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    assert "lacks 1 of 2 shards of train, first 00000" in refused(f"{tmp_path}@train")


def test_folder_of_saved_splits_is_read_by_the_name_of_one(tmp_path):
    saved = write_saved(tmp_path).rename(tmp_path / "train")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert f"holds splits train, test: name the one to read, as {tmp_path.name}@train" in refused(tmp_path)
    assert open_source(f"{tmp_path}@train", "s").count() == open_source(saved, "s").count() > 0
    assert "is split " in refused(f"{saved}@other")


def test_shards_follow_each_other_in_the_order_of_their_names(tmp_path):
    path = write_parquet(tmp_path)
    assert [file.name[:11] for file in open_source(path, "s").files()] == ["train-00000", "train-00001"]
    ids = [record_of(raw)["id"] for raw in open_source(path, "s")]
    assert ids == [f"id-{n}" for n in NUMBERS]
    assert columns.NUM_ROWS < 100


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_drawn_rows_are_those_at_their_positions(tmp_path, kind):
    number = 20
    pictures = (CELL, [{"bytes": bytes([i]), "path": None} for i in range(number)])
    path = write(tmp_path, table(image=pictures, conversations=(TURNS, [ASKED] * number)), kind)
    whole = [record_of(one) for one in open_source(path, "s")]
    drawn = list(open_source(path, "s").drawn(5, 7, random.Random(0)))
    positions = [int(where) for where, _ in drawn]
    assert len(set(positions)) == 7
    assert positions == sorted(positions)
    assert positions[0] >= 5
    for (_, one), position in zip(drawn, positions, strict=True):
        (found,), (expected,) = record_of(one)["image"], whole[position]["image"]
        assert (found.read(), found.name) == (expected.read(), expected.name)
    assert [where for where, _ in open_source(path, "s").drawn(18, 7, random.Random(0))] == ["18", "19"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("image", "image"), "column image stands twice: rename or drop one of them"),
        (("images", "image_2"), "columns images and image_2 each hold media of a row; make them one list, images"),
    ],
)
def test_columns_that_would_lose_a_picture_are_refused(names, told, kind, tmp_path):
    table = pa.table([pa.array(["a.png"]), pa.array(["b.png"]), pa.array([ASKED])], [*names, "conversations"])
    with pytest.raises(DataError, match=told):
        list(open_source(write(tmp_path, table, kind), "s"))
