"""The chat-messages form gives the samples that LLaVA's own form gives, and is refused by name where it cannot."""

from pathlib import Path

import pytest

from llava_train.data.samples.parse import MediaRoots, to_sample
from llava_train.shared.errors import DataError

ROOT = Path("media")
ROOTS = MediaRoots(ROOT, outside=True)
IMAGE, VIDEO = {"type": "image", "image": "a.png"}, {"type": "video", "path": "v.mp4"}


def say(*parts, role="user"):
    return {"role": role, "content": list(parts)}


def text(words):
    return {"type": "text", "text": words}


ANSWER = say(text("A cat."), role="assistant")


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        ([IMAGE, text("What?")], "<image>\nWhat?"),
        ([IMAGE, text("\nWhat?")], "<image>\nWhat?"),
        ([text("What is "), text("this?"), IMAGE], "What is this?<image>\n"),
        ([IMAGE, VIDEO, text("Which?")], "<image>\n<video>\nWhich?"),
        ([text("First "), IMAGE, text("then "), VIDEO, text("?")], "First <image>\nthen <video>\n?"),
    ],
)
def test_parts_are_one_text_with_their_media(parts, written):
    sample = to_sample({"messages": [say(*parts), ANSWER]}, "s", 0, ROOTS)
    assert [turn.text for turn in sample.turns] == [written, "A cat."]
    media = [part.get("image") or part["path"] for part in parts if part["type"] != "text"]
    assert [str(medium.file.relative_to(ROOT)) for medium in sample.media()] == media


def test_it_is_the_sample_of_the_other_form():
    typed = {"id": "x", "messages": [say(text("Be brief."), role="system"), say(IMAGE, text("What?")), ANSWER]}
    plain = {
        "id": "x",
        "image": ["a.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A cat."},
        ],
    }
    assert to_sample(typed, "s", 0, ROOTS) == to_sample(plain, "s", 0, ROOTS)


def test_texts_as_contents_and_paths_beside_the_parts_will_do():
    plain = {
        "messages": [{"role": "user", "content": "<image>\nq"}, {"role": "assistant", "content": "a"}],
        "image": "a.png",
    }
    assert to_sample(plain, "s", 0, ROOTS).images == [ROOT / "a.png"]
    beside = {"messages": [say({"type": "image"}, {"type": "image"}, text("q")), ANSWER], "image": ["a.png", "b.png"]}
    assert to_sample(beside, "s", 0, ROOTS).images == [ROOT / "a.png", ROOT / "b.png"]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"messages": [say(IMAGE, text("q")), ANSWER], "conversations": []}, "leave one of them out"),
        ({"messages": [say(IMAGE, text("q")), ANSWER], "image": "b.png"}, "give the path of each image"),
        ({"messages": [say(IMAGE, {"type": "image"}, text("q")), ANSWER]}, "give the path of each image"),
        ({"messages": [say({"type": "audio"}), ANSWER]}, "of type 'audio'"),
        ({"messages": [say("q"), ANSWER]}, "of type None"),
        ({"messages": [say({"type": "text"}), ANSWER]}, "text with its text"),
        ({"messages": [say(text("<image> q")), ANSWER]}, "a text part holds <image>"),
        ({"messages": [say({"type": "image", "url": "https://x/a.png"}, text("q")), ANSWER]}, "is an URL: download it"),
        ({"messages": [say({"type": "image", "image": {"bytes": ""}}, text("q")), ANSWER]}, "is a dict, not a path"),
    ],
)
def test_what_it_cannot_be_is_said(record, told):
    with pytest.raises(DataError, match=f"s, record 4: bad record .*{told}"):
        to_sample(record, "s", 4, ROOTS)
