"""A sample that has lost its picture is refused, in every form and format; a text that speaks of a tag stays text."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_train.data.samples.parse import MediaRoots, to_sample
from llava_train.records.readers.open import open_source, record_of
from llava_train.shared.errors import DataError

ROOTS = MediaRoots(Path("media"), outside=True)
ANSWER = {"from": "gpt", "value": "a red disc"}
TAG, LISTED = "<image>\nWhat is shown?", "image 1: <image>\nimage 2: <image>\nAlike?"
WITHIN, NONE = "What does <image> mean in HTML?", "What is shown?"
BASE64 = "iVBORw0KGgoAAAANSUhEUgAA"


def record(question: str, **beside) -> dict:
    return {"conversations": [{"from": "human", "value": question}, ANSWER], **beside}


def typed(*parts: dict, **beside) -> dict:
    content = [*parts, {"type": "text", "text": NONE}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}], **beside}


LOST = {
    "part": (typed({"type": "image"}), "1 parts of type 'image' without a path, and 'image' lists none"),
    "part of a video": (typed({"type": "video", "fps": 2}, image=[]), "of type 'video' without a path"),
    "empty path": (typed({"type": "image", "image": ""}), "without a path"),
    "path under another key": (typed({"type": "image", "image_path": "a.png"}), "without a path"),
    "beside imgs": (typed({"type": "image"}, imgs=["a.png"]), "without a path"),
    "text part with a path": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": NONE, "image": "a.png"}]}, ANSWER]},
        "a part of type 'text' has 'image' as well",
    ),
    "path in the text": (record("Picture 1: <img>a.png</img>\nWhat?"), "'<img>a.png</img>' in a human turn names one"),
    "any key, no tag": (record(NONE, screenshot="x/a.png"), "key 'screenshot'"),
    "within a mapping, no tag": (record(NONE, metadata={"image": "a.png"}), "key 'metadata'"),
    "null": (record(TAG, image=None), "<image> stands in a human turn, and nothing in 'image'"),
    "empty list": (record(TAG, image=[], video=None), "nothing in 'image' or 'video'"),
    "within a list": (record(LISTED, image=[]), "nothing in 'image'"),
    "video": (record("Name it. <video>", video=None), "<video> stands in a human turn, and nothing in 'video'"),
    "key": (record(TAG, image_path="a.png"), "key 'image_path' seems to hold one: name it 'image' or 'video'"),
    "key without a suffix": (record(TAG, imgs=["000012"]), "key 'imgs'"),
    "key of another case": (record(TAG, Image="a.png"), "key 'Image'"),
    "key of a mapping": (record(TAG, media={"front": 7}), "key 'media'"),
    "any key with a path": (record(WITHIN, attachment={"src": "clip.MP4"}), "key 'attachment'"),
    "base64": (record(TAG, data=BASE64), "key 'data'"),
    "no tag, path": (record(NONE, videoFile="x/1.mp4"), "key 'videoFile'"),
    "no tag, address": (record(NONE, image_url="https://x/a.jpg?w=3"), "key 'image_url'"),
    "no tag, base64": (record(NONE, image_base64=BASE64), "key 'image_base64'"),
}
TEXTS = {
    "tag": record(TAG),
    "within a line, null": record(WITHIN, image=None),
    "in an answer": {"image": [], "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": TAG}]},
    "unlike media": record(TAG, image_id=7, source="made"),
    "no tag": record(NONE, image_id="000012", caption="a.png is a file", image_size=[3, 4]),
    "no tag, said to be none": record(NONE, image=None, image_path="a.png"),
}


@pytest.mark.parametrize(("lost", "told"), LOST.values(), ids=LOST)
def test_a_sample_that_has_lost_its_picture_is_refused(lost, told):
    with pytest.raises(DataError, match="s, record 4: bad record") as caught:
        to_sample(lost, "s", 4, ROOTS)
    assert told in caught.value.detail


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_other_texts_stay_and_those_with_a_tag_are_known(text):
    sample = to_sample(text, "s", 0, ROOTS)
    assert sample.media() == []
    assert sample.is_tagged_text == ("<image>" in json.dumps(text))
    assert not to_sample(record(TAG, image="a.png"), "s", 0, ROOTS).is_tagged_text


def outcomes(path: Path) -> list[str]:
    found = []
    for position, raw in enumerate(open_source(path, "s")):
        try:
            sample = to_sample(record_of(raw), "s", position, ROOTS)
            found.append("text" if sample.is_tagged_text else "media" if sample.media() else "")
        except DataError as error:
            found.append(error.detail)
    return found


CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})
HELD = {"bytes": b"x", "path": None}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("column", "type_", "cells", "told"),
    [
        ("image", CELL, [HELD, None, {"bytes": None, "path": None}], ["media", "nothing in 'image'", "in 'image'"]),
        ("images", pa.list_(CELL), [[HELD], [], [None]], ["media", "nothing in 'image'", "nothing in 'image'"]),
        ("image", pa.string(), ["a.png", "", None], ["media", "nothing in 'image'", "nothing in 'image'"]),
        ("image_bytes", pa.binary(), [b"x", b"", None], ["key 'image_bytes'", "key 'image_bytes'", "text"]),
        ("pil", CELL, [HELD, None, HELD], ["key 'pil'", "text", "key 'pil'"]),
    ],
)
def test_cells_without_a_picture_are_refused(column, type_, cells, told, kind, tmp_path):
    table = pa.table({column: pa.array(cells, type_), **{k: [v] * 3 for k, v in record(TAG).items()}})
    if kind == "parquet":
        pq.write_table(table, path := tmp_path / "a.parquet")
    else:
        with pa.ipc.new_stream((path := tmp_path) / "a.arrow", table.schema) as stream:
            stream.write_table(table)
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": None}))
    assert all(part in found for part, found in zip(told, outcomes(path), strict=True)), outcomes(path)


def test_members_that_are_not_there_are_refused(tmp_path):
    groups = [record(TAG), record(NONE), record(WITHIN), typed({"type": "image"}), typed({"type": "image"})]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, group in enumerate(groups):
            (tmp_path / f"{i}.json").write_text(json.dumps(group))
            tar.add(tmp_path / f"{i}.json", f"{i}.json")
        (tmp_path / "4.png").write_bytes(b"x")
        tar.add(tmp_path / "4.png", "4.png")
    lost, *texts, part, whole = outcomes(tmp_path / "a.tar")
    assert "nothing in 'image' or 'video'" in lost
    assert texts == ["", "text"]
    assert "without a path" in part
    assert whole == "media"
