"""Text rules by hand, and the chat template rendered by transformers beside what training encodes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.text.base import TemplateError
from llava_train.text.chat_template import chat_template
from llava_train.text.media_tags import media_order, media_tags, normalise_tags, rendered_by_template
from llava_train.text.named_templates import make_template
from llava_train.text.vicuna import VICUNA_SYSTEM

NAMES = {"system": "system", "human": "user", "gpt": "assistant"}
ROLES = {name: role for role, name in NAMES.items()}
BOTH = media_tags(1, 1)


def render(messages: list[dict], tag_policy: str = "front", name: str = "qwen", **options) -> str:
    (text,), _ = render_jinja_template([messages], chat_template=chat_template(name, tag_policy), **options)
    return text


def trained(turns: list[tuple[str, str]], tag_policy: str = "front", name: str = "qwen", tags=BOTH) -> str:
    return joined(make_template(name, "clean", tag_policy).pieces(turns, tags))


def joined(pieces) -> str:
    return "".join(f"<{piece.medium}>" if piece.medium else piece.text for piece in pieces)


def message(role: str, *parts: str) -> dict:
    kinds = {IMAGE_TAG: {"type": "image"}, VIDEO_TAG: {"type": "video"}}
    return {"role": NAMES[role], "content": [kinds.get(part, {"type": "text", "text": part}) for part in parts]}


@pytest.mark.parametrize(
    ("written", "front"),
    [
        ("Look at <image> and describe it.", "<image>\nLook at  and describe it."),
        ("<image> stays", "<image> stays"),
        ("Describe.\n<image>", "<image>\nDescribe."),
        (" <image> ", "<image>"),
        ("see <video> please", "<video>\nsee  please"),
        ("a <image> b <image>", "a <image> b <image>"),
        ("no tag ", "no tag "),
        ("<image>\nQA_GT_caption_based_noisy what?", "<image>\n what?"),
    ],
)
def test_front_moves_a_lone_tag_and_keep_does_not(written, front):
    assert normalise_tags(written, "front") == front
    assert normalise_tags(written, "keep") == written


def test_media_order_is_the_reading_order():
    turns = [("human", "<video>\nand <image>"), ("gpt", "yes"), ("human", "<image>")]
    assert media_order(turns, 2, 1) == [("video", 0), ("image", 0), ("image", 1)]
    assert media_order([("human", "<image> <video>")], 0, 2) == [("video", 0), ("video", 1)]
    assert media_order([("human", "<image> <video>")], 0, 0) == []
    with pytest.raises(TemplateError, match="1 image and 0 video tags for 2 images and 0 videos"):
        media_order([("human", "<image>")], 2, 0)


def test_one_medium_goes_to_the_front_with_stripped_text():
    for parts in (("<image>", "What?"), ("What?", "<image>"), (" Wh", "<image>", "at? "), ("<image>", "\nWhat?")):
        assert "user\n<image>\nWh" in render([message("human", *parts)])
        assert "t?<|im_end|>" in render([message("human", *parts)])
    assert "user\n<video><|im_end|>" in render([message("human", "<video>")])


def test_several_media_keep_their_place_and_close_their_line():
    text = render([message("human", "image 1: ", "<image>", "image 2: ", "<image>", "\nlist", "", "<video>")])
    assert "user\nimage 1: <image>\nimage 2: <image>\nlist<video>\n<|im_end|>" in text
    assert "user\n<image>\n<image>\nq<|im_end|>" in render([message("human", "<image>", "", "<image>", "", "q")])


def test_keep_leaves_one_medium_in_its_place():
    assert "user\nsee <image>\nnow <|im_end|>" in render([message("human", "see ", "<image>", "now ")], "keep")


def test_default_system_text_generation_prompt_and_strings_as_written():
    text = render([{"role": "user", "content": " <b>&\"'{{x}} "}], add_generation_prompt=True)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text == f"{system}<|im_start|>user\n <b>&\"'{{{{x}}}} <|im_end|>\n<|im_start|>assistant\n"
    own = render([{"role": "system", "content": "Be terse."}, message("human", "<b>&\"'", "<image>")])
    assert own == "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\n<image>\n<b>&\"'<|im_end|>\n"


def test_unknown_part_is_refused():
    with pytest.raises(Exception, match="text, image or video, not audio"):
        render([{"role": "user", "content": [{"type": "audio"}]}])


def test_generation_marks_cover_the_answers_and_their_end():
    messages = [message("human", "a"), message("gpt", "x < y & z"), message("human", "b"), message("gpt", "w")]
    texts, spans = render_jinja_template(
        [messages], chat_template=chat_template("qwen", "front"), return_assistant_tokens_mask=True
    )
    assert [texts[0][start:stop] for start, stop in spans[0]] == ["x < y & z<|im_end|>", "w<|im_end|>"]


def test_assistant_mask_equals_the_labels():
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "golden" / "qwen2_tokenizer")
    messages = [message("human", "Hello"), message("gpt", "Hi there!")]
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=chat_template("qwen", "front"), return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert learned == [13048, 1052, 0, 151645]  # recipe: answer and its end, by the worked example of the golden rule


def texts_with_tags() -> list[str]:
    rng = random.Random(0)
    atoms = [IMAGE_TAG, VIDEO_TAG, "\n", " ", "a", "b c", "\nd"]
    exhaustive = ["".join(parts) for n in (1, 2, 3) for parts in itertools.product(atoms, repeat=n)]
    return exhaustive + ["".join(rng.choices(atoms, k=rng.randint(4, 8))) for _ in range(300)]


@pytest.mark.parametrize("name", ["qwen", "vicuna"])
@pytest.mark.parametrize("tag_policy", ["front", "keep"])
def test_rendered_by_template_is_what_rendering_shows(tag_policy, name):
    """A message made of the trained text's own parts renders that text exactly where the rule says so."""
    seen = {True: 0, False: 0}
    for text in texts_with_tags():
        turns = [("human", text), ("gpt", "yes")]
        expected = trained(turns, tag_policy, name)
        kept = normalise_tags(text, tag_policy)
        parts = kept.replace(IMAGE_TAG, f"\0{IMAGE_TAG}\0").replace(VIDEO_TAG, f"\0{VIDEO_TAG}\0").split("\0")
        shown = render([message("human", *filter(None, parts)), message("gpt", "yes")], tag_policy, name)
        if name == "vicuna" and "> \n" in kept:
            continue  # the space is then vicuna's own as well: shown rightly, and counted as if not
        assert rendered_by_template(turns, BOTH, tag_policy) == (shown == expected), repr(text)
        seen[shown == expected] += 1
    assert min(seen.values()) > 50


def test_tags_as_ordinary_text_are_not_renderable():
    assert not rendered_by_template([("human", "the <image> tag")], {}, "front")
    assert rendered_by_template([("human", "plain text")], {}, "front")


CONVERSATIONS = (
    [("human", "Hello"), ("gpt", "Hi!")],
    [("system", "Be terse."), ("human", "<image>\nq"), ("gpt", "a"), ("human", "r"), ("gpt", "b")],
    [("human", "<video>"), ("gpt", " spaced <b> & {{x}} ")],
    [("human", "one: <image>\ntwo: <image>\nq"), ("gpt", ""), ("human", ""), ("gpt", "\nb")],
)


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", ["qwen", "vicuna"])
def test_chat_template_renders_the_training_text_and_marks_what_is_learned(turns, name):
    messages = [{"role": NAMES[role], "content": text} for role, text in turns]
    pieces = make_template(name, "clean", "front").pieces(turns, BOTH)
    texts, spans = render_jinja_template(
        [messages], chat_template=chat_template(name, "front"), return_assistant_tokens_mask=True
    )
    assert texts == [joined(pieces)]
    learned = "".join(piece.text for piece in pieces if piece.supervised)
    assert "".join(texts[0][start:stop] for start, stop in spans[0]) == learned
    prompt = make_template(name, "clean", "front").prompt_pieces(turns, BOTH)
    assert render(messages[:-1], name=name, add_generation_prompt=True) == joined(prompt)


def test_vicuna_is_written_as_the_recipe_says():
    """By hand, with the space that SentencePiece puts before a text written after `<s>` and a medium."""
    turns = [("human", "<image>\nq"), ("gpt", "a"), ("human", "r"), ("gpt", "b")]
    text = f"<s> {VICUNA_SYSTEM} USER: <image> \nq ASSISTANT: a</s>USER: r ASSISTANT: b</s>"
    assert trained(turns, name="vicuna") == text
    assert trained([("system", "Be terse."), ("human", "q"), ("gpt", "")], name="vicuna") == (
        "<s> Be terse. USER: q ASSISTANT:"
    )
    assert VICUNA_SYSTEM.startswith("A chat between a curious user and an artificial intelligence assistant. The ")
    assert VICUNA_SYSTEM.endswith("gives helpful, detailed, and polite answers to the user's questions.")


def test_a_stage_of_captions_exports_chatml():
    assert chat_template("plain", "front") == chat_template("qwen", "front")
    assert chat_template("vicuna", "front") != chat_template("qwen", "front")
