"""Prompts of the command line and of files: what is asked, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llava_train.data.samples.prompts import prompt_sample, read_prompts, with_tags
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.shared.errors import DataError
from llava_train.text.chat_template import chat_template


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_tiny(tmp_path_factory.mktemp("prompts") / "tiny"))


def read(folder, *records, system=""):
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return read_prompts(folder / "p.jsonl", folder, system)


@pytest.mark.parametrize("policy", ["front", "keep"])
@pytest.mark.parametrize("kinds", [[], ["image"], ["video"], ["image", "image", "video"]])
@pytest.mark.parametrize("text", ["What?", "\nWhat?"])
def test_tags_come_first_as_the_chat_template_renders_them(tokenizer, policy, kinds, text):
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": text}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=chat_template("qwen", policy), tokenize=False
    )
    assert f"<|im_start|>user\n{with_tags(text, kinds)}<|im_end|>\n" in rendered


def test_a_prompt_with_tags_is_taken_as_written():
    sample = prompt_sample("one: <image>\ntwo: <image>", ["a", "b"], [], "Be brief.")
    assert [tuple(turn) for turn in sample.turns] == [("system", "Be brief."), ("human", "one: <image>\ntwo: <image>")]


def test_records_in_either_form_ask_alike(tmp_path):
    plain, several, trained = read(
        tmp_path,
        {"id": 7, "prompt": "What?", "images": ["a.png", "b.png"], "videos": "c.mp4"},
        {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}] * 2},
        {"id": "x", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]},
    )
    assert [prompt.id for prompt in (plain, several, trained)] == ["7", "1", "x"]
    assert plain.asked.turns == [("human", "<image>\n<image>\n<video>\nWhat?")]
    assert (plain.asked.images, plain.asked.videos) == ([tmp_path / "a.png", tmp_path / "b.png"], [tmp_path / "c.mp4"])
    assert [turn.role for turn in several.asked.turns] == ["human", "gpt", "human", "gpt"]
    assert trained.asked.turns == [("human", "<image>\nWhat?")]
    assert trained.asked.images == [Path(tmp_path / "a.png")]


def test_the_system_text_is_for_records_without_one(tmp_path):
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}]
    prompts = read(tmp_path, {"prompt": "Hi"}, {"conversations": own}, system="Be brief.")
    assert [prompt.asked.turns[0].text for prompt in prompts] == ["Be brief.", "Mine."]


def test_digest_follows_text_and_media(tmp_path):
    records = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "image": "a.png"}, {"prompt": "a", "video": "a.png"}]
    digests = [prompt.digest for prompt in read(tmp_path, *records)]
    assert len(set(digests)) == len(records)
    assert digests == [prompt.digest for prompt in read(tmp_path, *records)]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"id": "a"}, "no conversations"),
        ({"prompt": " "}, "either prompt, a text, or conversations"),
        ({"prompt": 3}, "either prompt, a text, or conversations"),
        ({"prompt": "a", "conversations": []}, "either prompt, a text, or conversations"),
        ({"prompt": "a", "image": "a.png", "images": ["b.png"]}, "has 'image' and 'images'"),
        ({"prompt": "a", "images": [None]}, "'images' lists an entry that holds nothing"),
        ({"prompt": "<image> a"}, "<image> stands in it, and it lists no image or video"),
        ({"prompt": "a", "images": [3]}, "neither a path nor a list of paths"),
        (["a"], "is a list, not a mapping"),
    ],
)
def test_a_bad_record_is_kept_with_its_reason(tmp_path, record, told):
    good, bad = read(tmp_path, {"prompt": "Hi"}, record)
    assert good.asked.turns
    assert isinstance(bad.asked, DataError)
    assert (bad.asked.reason, told in bad.asked.detail) == ("bad record", True)


def test_an_id_names_one_record(tmp_path):
    with pytest.raises(DataError, match="record 1: id used twice"):
        read(tmp_path, {"prompt": "a", "id": "1"}, {"prompt": "b"})
