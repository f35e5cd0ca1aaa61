"""Records of every form to Samples, and each bad form refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_train.data.samples.parse import MediaRoots, to_answered, to_sample
from llava_train.data.samples.sample import Medium, Turn
from llava_train.shared.errors import DataError

ROOT = Path("media")
ROOTS = MediaRoots(ROOT, outside=True)
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("media", "images", "videos"),
    [
        ({}, [], []),
        ({"image": "a.png"}, ["a.png"], []),
        ({"image": ["a.png", "b/c.png"]}, ["a.png", "b/c.png"], []),
        ({"video": "a.mp4"}, [], ["a.mp4"]),
        ({"video": ["a.mp4", "folder"], "image": "a.png"}, ["a.png"], ["a.mp4", "folder"]),
        ({"image": None, "video": []}, [], []),
        ({"image": "", "video": [""]}, [], []),
        ({"images": "a.png", "videos": ["a.mp4", None]}, ["a.png"], ["a.mp4"]),
        ({"image": "a.png", "images": [], "video": [], "videos": "a.mp4"}, ["a.png"], ["a.mp4"]),
    ],
)
def test_media_are_a_path_or_a_list(media, images, videos):
    sample = to_sample({"conversations": TURNS, **media}, "s", 3, ROOTS)
    assert sample.images == [ROOT / path for path in images]
    assert sample.videos == [ROOT / path for path in videos]


def test_absolute_paths_stay():
    assert to_sample({"conversations": TURNS, "image": "/x/a.png"}, "s", 0, ROOTS).images == [Path("/x/a.png")]


def test_id_is_text_or_the_position():
    assert to_sample({"id": 7, "conversations": TURNS}, "s", 3, ROOTS).record == "3 (id 7)"
    assert to_sample({"conversations": TURNS}, "s", 3, ROOTS).id == "3"
    long = to_sample({"id": "x" * 9000, "conversations": TURNS}, "s", 3, ROOTS)
    assert (long.id, long.record) == ("x" * 9000, f"3 (id {'x' * 200}... (9,000 characters))")


def test_role_content_and_role_names_are_accepted():
    conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert to_sample({"conversations": conversation}, "s", 0, ROOTS).turns == [Turn("human", "q"), Turn("gpt", "a")]


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_turns_may_be_json_in_a_text(key):
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]
    record = {key: json.dumps([{"role": "user", "content": parts}, TURNS[1]])}
    sample = to_sample(record, "s", 0, ROOTS)
    assert (sample.turns, sample.images) == ([Turn("human", "<image>\nq"), Turn("gpt", "a")], [ROOT / "a.png"])


def test_leading_answer_is_dropped_and_system_kept():
    greeting = {"from": "gpt", "value": "hello"}
    system = {"from": "system", "value": "Be terse."}
    turns = [Turn("human", "q"), Turn("gpt", "a")]
    assert to_sample({"conversations": [greeting, *TURNS]}, "s", 0, ROOTS).turns == turns
    with_system = to_sample({"conversations": [system, greeting, *TURNS]}, "s", 0, ROOTS)
    assert with_system.turns == [Turn("system", "Be terse."), *turns]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "is a list, not a mapping"),
        ({}, "no conversations"),
        ({"conversations": []}, "no conversations"),
        ({"conversations": ["q"]}, "a turn is not a mapping"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "role 'narrator' is unknown; known: system, human"),
        ({"conversations": [{"value": "x"}]}, "role None is unknown"),
        ({"conversations": [{"from": "human", "value": 3}]}, "the text of a human turn is a int"),
        ({"conversations": [*TURNS, {"from": "system", "value": "x"}]}, "a system turn may only come first"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "no human turn"),
        ({"conversations": TURNS, "image": 0}, "'image' is neither a path nor a list of paths"),
        ({"conversations": TURNS, "video": ["a.mp4", 3]}, "'video' is neither a path nor a list of paths"),
        (
            {"conversations": TURNS, "images": ["a.png"], "image": "b.png"},
            "has 'image' and 'images': leave one of them out",
        ),
        ({"conversations": "[{'from': 'human'}]"}, "conversations are a text that is no JSON (Expecting property"),
        ({"messages": '"q"'}, "no conversations"),
    ],
)
def test_bad_record_is_refused_with_its_reason(record, reason):
    with pytest.raises(DataError) as caught:
        to_sample(record, "s", 5, ROOTS)
    assert (caught.value.source, caught.value.record, caught.value.reason) == ("s", "5", "bad record")
    assert reason in caught.value.detail


def test_an_empty_answer_is_a_bad_record_as_in_tables():
    sound = {"conversations": TURNS}
    assert to_answered(sound, "s", 5, ROOTS) == to_sample(sound, "s", 5, ROOTS)
    with pytest.raises(DataError, match=r"s, record 5: bad record \(the answer in turn 4 is empty\)"):
        to_answered({"conversations": [*TURNS, TURNS[0], {"from": "gpt", "value": " \n"}]}, "s", 5, ROOTS)


def test_media_follow_the_reading_order_of_their_tags():
    conversation = [{"from": "human", "value": "<video> then <image> <image>"}, TURNS[1]]
    record = {"conversations": conversation, "image": ["a.png", "b.png"], "video": "c.mp4"}
    media = to_sample(record, "s", 0, ROOTS).media()
    assert media == [Medium("video", ROOT / "c.mp4"), Medium("image", ROOT / "a.png"), Medium("image", ROOT / "b.png")]
