"""Template checkpoint against what transformers renders by the same Jinja text, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import RELEASED, message
from transformers import AutoTokenizer

from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.errors import ConfigError
from llava_train.text.base import TemplateError
from llava_train.text.chat_template import chat_template
from llava_train.text.checkpoint_template import CheckpointTemplate, read_chat_template, stage_template
from llava_train.text.named_templates import make_template

BOTH = {IMAGE_TAG: "image", VIDEO_TAG: "video"}
ENDS = ("<|im_start|>", "<|im_end|>", "<image>", "<video>", "</s>", "<s>")
TEXT_ONLY = """
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""".strip()


def template(jinja: str, tag_policy="front") -> CheckpointTemplate:
    return CheckpointTemplate(jinja, tag_policy, {"bos_token": "<s>"}, ENDS)


def joined(pieces, supervised=(False, True)) -> str:
    names = {"image": IMAGE_TAG, "video": VIDEO_TAG, None: ""}
    return "".join(piece.text + names[piece.medium] for piece in pieces if piece.supervised in supervised)


def learned(pieces) -> str:
    return joined(pieces, [True])


def rendered(jinja: str, messages: list[dict], **options) -> str:
    return byte_tokenizer().apply_chat_template(messages, chat_template=jinja, tokenize=False, **options)


ASKED = [("human", "<image>\nWhat?"), ("gpt", "A cat")]


def test_released_template_trains_what_follows_the_prompt_of_the_processor():
    pieces = template(RELEASED).pieces(ASKED, BOTH)
    prompt = rendered(RELEASED, [message("user", IMAGE_TAG, "What?")], add_generation_prompt=True)
    assert prompt == "<|im_start|>user <image>\nWhat?<|im_end|><|im_start|>assistant\n"
    assert joined(pieces) == prompt + "A cat<|im_end|>"
    assert learned(pieces) == "A cat<|im_end|>"
    assert joined(template(RELEASED).prompt_pieces(ASKED, BOTH)) == prompt


def test_released_template_asks_every_turn_with_the_prompt():
    turns = [("system", "Be kind"), *ASKED, ("human", "Sure?"), ("gpt", "Yes")]
    pieces = template(RELEASED).pieces(turns, BOTH)
    assert joined(pieces) == (
        "<|im_start|>system \nBe kind<|im_end|><|im_start|>user <image>\nWhat?<|im_end|><|im_start|>assistant\nA cat"
        "<|im_end|><|im_start|>user \nSure?<|im_end|><|im_start|>assistant\nYes<|im_end|>"
    )
    assert learned(pieces) == "A cat<|im_end|>Yes<|im_end|>"
    messages = [message("system", "Be kind"), message("user", IMAGE_TAG, "What?")]
    messages += [message("assistant", "A cat"), message("user", "Sure?")]
    asked = joined(template(RELEASED).prompt_pieces(turns, BOTH))
    assert asked == rendered(RELEASED, messages, add_generation_prompt=True)
    assert not template(RELEASED).renders(turns, BOTH)


def test_released_template_takes_images_and_videos_in_its_order_alone():
    several = [("human", "<image>\n<image>\n<video>\nWhich?"), ("gpt", "A")]
    text = joined(template(RELEASED).pieces(several, BOTH))
    assert text.startswith("<|im_start|>user <image><image><video>\nWhich?<|im_end|>")
    with pytest.raises(TemplateError, match="media in another order: the turns have video, image, the chat template"):
        template(RELEASED).pieces([("human", "<video>\n<image>\nWhich?"), ("gpt", "A")], BOTH)


@pytest.mark.parametrize("policy", ["front", "keep"])
@pytest.mark.parametrize("name", ["qwen", "vicuna"])
@pytest.mark.parametrize(
    "turns",
    [
        ASKED,
        [("human", "Hi"), ("gpt", "there"), ("human", "More")],
        [("system", "Short"), ("human", "<image>\n<video>\nWhich?"), ("gpt", "B"), ("human", "Why?"), ("gpt", "So.")],
        [("human", "a <image>\nb"), ("gpt", ""), ("human", "c"), ("gpt", "d")],
    ],
)
def test_our_own_chat_templates_give_the_text_and_labels_of_our_templates(name, policy, turns):
    tags = BOTH if any("<" in text for _, text in turns) else {}
    ours, theirs = make_template(name, "clean", policy), template(chat_template(name, policy), policy)
    assert joined(theirs.pieces(turns, tags)) == joined(ours.pieces(turns, tags))
    assert learned(theirs.pieces(turns, tags)) == learned(ours.pieces(turns, tags))
    assert joined(theirs.prompt_pieces(turns, tags)) == joined(ours.prompt_pieces(turns, tags))
    assert theirs.renders(turns, tags)


def test_text_goes_as_it_is_written_where_a_template_takes_no_parts():
    turns = [("human", "<image>\nWhat is <image>?"), ("gpt", "A cat")]
    pieces = template(TEXT_ONLY).pieces(turns, {IMAGE_TAG: "video", VIDEO_TAG: "video"})
    assert joined(pieces).startswith("<|im_start|>user\n<video>\nWhat is <video>?<|im_end|>\n")
    assert learned(pieces) == "A cat<|im_end|>"


def test_policy_moves_the_only_tag_of_a_turn():
    turns = [("human", "Look at <image> and tell"), ("gpt", "A cat")]
    front = joined(template(RELEASED, "front").prompt_pieces(turns, BOTH))
    keep = joined(template(RELEASED, "keep").prompt_pieces(turns, BOTH))
    assert front.startswith("<|im_start|>user <image>\nLook at  and tell<|im_end|>")
    assert keep.startswith("<|im_start|>user <image>\nLook at \nand tell<|im_end|>")


def test_a_tag_without_media_is_text_that_no_processor_renders_so():
    turns = [("human", "What does <image> mean?"), ("gpt", "A place")]
    assert [piece.medium for piece in template(RELEASED).pieces(turns, {})] == [None] * 2
    assert not template(RELEASED).renders(turns, {})
    assert template(RELEASED).renders([("human", "Hi"), ("gpt", "there")], {})


CHANGED = {
    "": "none: neither its processor nor its tokenizer has one",
    "{% for": "not understood: it does not render what the user says: unexpected",
    "{{ raise_exception('closed') }}": "what the user says: closed",
    "{% for m in messages %}{{ m.content }}{% endfor %}": "no generation prompt",
    TEXT_ONLY.replace("message.content", "message.content[:0]"): "what the user says, or no <image> and <video> in it",
    TEXT_ONLY.replace("<|im_end|>", ""): r"no end: no token of its own ends an answer, only '\\n'",
    TEXT_ONLY.replace("assistant\\n", "helper\\n"): r"another prompt: it asks with '<\|im_start\|>helper\\n'",
    TEXT_ONLY.replace("messages -%}", "messages[-1:] -%}"): "template rewrites earlier turns",
}


@pytest.mark.parametrize(("jinja", "told"), CHANGED.items(), ids=range(len(CHANGED)))
def test_template_by_which_nothing_can_be_learned_is_refused(jinja, told):
    with pytest.raises(TemplateError, match=told):
        template(jinja)


def test_template_that_rewrites_turns_refuses_the_samples_that_have_them():
    last = "(message.content if loop.last or message.role == 'user' else '')"
    rewriting = template(TEXT_ONLY.replace("message.content", last))
    assert learned(rewriting.pieces(ASKED, BOTH)) == "A cat<|im_end|>"
    with pytest.raises(TemplateError, match=r"template rewrites earlier turns: .*name a template, as template=qwen"):
        rewriting.pieces([*ASKED, ("human", "Sure?"), ("gpt", "Yes")], BOTH)


def test_template_without_system_turns_refuses_the_samples_that_have_one():
    refusing = TEXT_ONLY.replace("message.content", "(message.content if message.role != 'system' else '')")
    with pytest.raises(TemplateError, match="no system turns"):
        template(refusing).pieces([("system", "Short"), *ASKED], BOTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("chat") / "tiny")


def test_chat_template_is_read_as_the_processor_finds_it(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [read_chat_template(folder, tokenizer)]
    assert found == [(folder / "chat_template.jinja").read_text()]
    tokenizer.chat_template = {"default": "of the tokenizer", "tool_use": "other"}
    for name, content in (
        ("none.json", ""),
        ("chat_template.jinja", "{{ 'the file\r\n' }}"),
        ("chat_template.json", json.dumps({"chat_template": "older"})),
        ("processor_config.json", json.dumps({"chat_template": "oldest"})),
    ):
        (tmp_path / name).write_bytes(content.encode())
        found.append(read_chat_template(tmp_path, tokenizer))
    assert found[1:] == ["of the tokenizer", "{{ 'the file\r\n' }}", "older", "oldest"]


def test_checkpoint_without_a_chat_template_is_refused_with_the_remedy():
    tokenizer = byte_tokenizer()
    with pytest.raises(ConfigError) as error:
        stage_template("checkpoint", "clean", "front", tokenizer, "stages.s.template")
    (fault,) = error.value.faults
    assert fault.key == "stages.s.template"
    assert fault.problem == "the checkpoint's chat template: none: neither its processor nor its tokenizer has one"
    assert fault.remedy.startswith("name a template instead, as qwen, or put a chat_template.jinja into")
