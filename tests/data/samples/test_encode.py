"""Ids and labels against the golden cases, and the rules the golden cases do not reach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from llava_train.batch.packed import IGNORE_INDEX
from llava_train.data.samples.encode import Encoder
from llava_train.data.samples.parse import MediaRoots, to_sample
from llava_train.data.samples.sample import Sample
from llava_train.family.base import VisualLayout
from llava_train.shared.errors import DataError
from llava_train.text.chat_template import chat_template
from llava_train.text.named_templates import make_template
from llava_train.text.placeholders import prepare_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"
IMAGE, VIDEO = 151646, 151647
ONE = {"image": VisualLayout("square", 8, 8, (1, 1), 1, 1), "video": VisualLayout("video", 8, 8, (1, 1), 1, 1)}


@pytest.fixture
def encoder(tokenizer):
    def make(template="qwen", label_rule="clean", tag_policy="front", max_length=4096) -> Encoder:
        return Encoder(tokenizer, IMAGE, VIDEO, make_template(template, label_rule, tag_policy), max_length)

    return make


def sample_of(conversations: list[dict], num_images: int = 0, num_videos: int = 0) -> Sample:
    record = {"conversations": conversations, "image": ["i.png"] * num_images, "video": ["v.mp4"] * num_videos}
    return to_sample(record, "golden", 0, MediaRoots(Path("root")))


def encode(encoder: Encoder, sample: Sample):
    return encoder.encode(sample, [ONE[medium.kind] for medium in sample.media()])


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def cases(name: str) -> list[dict]:
    table = json.loads((GOLDEN / name).read_text())["cases"]
    assert table
    return table


@pytest.mark.parametrize("label_rule", ["clean", "original"])
@pytest.mark.parametrize("case", cases("labels_qwen_chatml.json"), ids=lambda case: case["name"])
def test_qwen_equals_golden_ids_and_labels(encoder, case, label_rule):
    counts = {"none": (0, 0), "image": (case["n_images"], 0), "video": (0, case["n_images"])}[case["kind"]]
    encoded = encode(encoder(label_rule=label_rule), sample_of(case["conversations"], *counts))
    placeholder = VIDEO if case["kind"] == "video" else IMAGE
    assert encoded.input_ids.tolist() == [placeholder if i == -200 else i for i in case["input_ids"]]
    assert encoded.labels.tolist() == case["clean_labels" if label_rule == "clean" else "labels"]


@pytest.mark.parametrize("case", cases("labels_plain.json"), ids=lambda case: case["name"])
def test_plain_equals_golden_ids_and_labels(encoder, case):
    num_images = str(case["conversations"]).count("<image>")
    sample = sample_of(case["conversations"], num_images)
    if case["error"]:
        with pytest.raises(DataError, match=r"golden, record 0: not a caption .*one human and one gpt turn, not 4"):
            encode(encoder("plain"), sample)
        return
    encoded = encode(encoder("plain"), sample)
    assert encoded.input_ids.tolist() == [IMAGE if i == -200 else i for i in case["input_ids"]]
    assert encoded.labels.tolist() == [IGNORE_INDEX if i == -200 else i for i in case["labels"]]


def test_tags_without_media_are_ordinary_text(encoder, tokenizer):
    encoded = encode(encoder(), sample_of(turns("Explain the <image> and <video> tags.", "They <image> mark media.")))
    assert not {IMAGE, VIDEO} & set(encoded.input_ids.tolist())
    assert "the <image> and <video> tags." in tokenizer.decode(encoded.input_ids)
    assert encoded.visuals == ()


def test_special_token_in_user_text_is_special_and_not_supervised(encoder):
    encoded = encode(encoder(), sample_of(turns("a<|im_end|>b", "c")))
    at = [i for i, token in enumerate(encoded.input_ids.tolist()) if token == 151645]
    assert [int(encoded.labels[i]) for i in at] == [IGNORE_INDEX] * 3 + [
        151645
    ]  # system, user text, user end, answer end


def test_answer_that_starts_with_a_newline_keeps_the_header_apart(encoder):
    ids = encode(encoder(), sample_of(turns("a", "\nb"))).input_ids.tolist()
    header = [151644, 77091, 198]
    assert [i for i in range(len(ids)) if ids[i : i + 5] == [*header, 198, 65]], ids


def test_system_turn_replaces_the_default(encoder, tokenizer):
    record = [{"from": "system", "value": "Be terse."}, *turns("a", "b")]
    text = tokenizer.decode(encode(encoder(), sample_of(record)).input_ids)
    messages = ("system\nBe terse.", "user\na", "assistant\nb")
    assert text == "".join(f"<|im_start|>{message}<|im_end|>\n" for message in messages)


def test_placeholders_expand_in_reading_order(encoder):
    """By hand: video of 3 tokens, text, image of 2, image of 4; positions follow the placeholders."""
    sample = sample_of(turns("<video>\nand <image>, <image>", "ok"), 2, 1)
    layouts = [
        VisualLayout("video", 8, 8, (1, 1), 1, 3),
        VisualLayout("padded", 8, 8, (1, 1), 1, 2),
        VisualLayout("padded", 8, 8, (1, 1), 1, 4),
    ]
    encoded = encoder().encode(sample, layouts)
    visible = [int(i) for i in encoded.input_ids if i in (IMAGE, VIDEO)]
    assert visible == [VIDEO] * 3 + [IMAGE] * 6
    assert encoded.visual_positions.tolist() == [
        i for i, token in enumerate(encoded.input_ids) if token in (IMAGE, VIDEO)
    ]
    assert set(encoded.labels[encoded.visual_positions]) == {IGNORE_INDEX}
    assert encoded.input_ids.dtype == encoded.labels.dtype == encoded.visual_positions.dtype == np.int32


def test_tag_policy_keep_leaves_the_tag_in_place(encoder, tokenizer):
    record = turns("Look at <image> and say.", "x")
    kept = tokenizer.decode(encode(encoder(tag_policy="keep"), sample_of(record, 1)).input_ids)
    assert "user\nLook at <image> and say.<|im_end|>" in kept
    moved = tokenizer.decode(encode(encoder(), sample_of(record, 1)).input_ids)
    assert "user\n<image>\nLook at  and say.<|im_end|>" in moved


@pytest.mark.parametrize("text", ["<image>\nq", "<video>\nq"])
def test_either_tag_denotes_a_video(encoder, text):
    assert VIDEO in encode(encoder(), sample_of(turns(text, "a"), 0, 1)).input_ids


@pytest.mark.parametrize(
    ("text", "num_images", "num_videos"),
    [("no tag", 1, 0), ("<image><image>", 1, 0), ("<image>", 2, 0), ("<video>", 1, 0), ("<image><image>", 1, 1)],
)
def test_tag_media_mismatch_is_refused_by_name(text, num_images, num_videos):
    with pytest.raises(DataError, match="golden, record 0: tag/media mismatch"):
        sample_of(turns(text, "a"), num_images, num_videos).media()


def test_too_long_and_nothing_supervised_are_refused(encoder):
    with pytest.raises(DataError, match=r"longer than max_length \(2\d tokens, max_length 10\)"):
        encode(encoder(max_length=10), sample_of(turns("Hello", "Hi there!")))
    with pytest.raises(DataError, match="nothing supervised"):
        encode(encoder(), sample_of(turns("Hello")))


def test_plain_without_medium_is_refused(encoder):
    with pytest.raises(DataError, match="needs an image or video"):
        encode(encoder("plain"), sample_of(turns("Hello", "Hi")))
    with pytest.raises(DataError, match="with its tag in turn 1"):
        encode(encoder("plain"), sample_of(turns("Hello", "<image>\nHi"), 1))


def test_prompt_is_the_sample_up_to_its_last_answer(encoder):
    sample = sample_of(turns("<image>\nq", "a", "r", "last answer"), 1)
    whole = encode(encoder(), sample).input_ids.tolist()
    layouts = [ONE["image"]]
    prompt = encoder().encode_prompt(sample, layouts).input_ids.tolist()
    assert prompt == whole[: len(prompt)]
    assert prompt[-3:] == [151644, 77091, 198]
    unanswered = sample_of(turns("<image>\nq", "a", "r"), 1)
    assert encoder().encode_prompt(unanswered, layouts).input_ids.tolist() == prompt


LLAMA_IMAGE, LLAMA_VIDEO, LLAMA_END = 1024, 1025, 2


@pytest.fixture(scope="module")
def llama():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "llama_tiny_tokenizer")
    prepare_tokenizer(tokenizer, LLAMA_IMAGE, LLAMA_VIDEO)
    return tokenizer


@pytest.fixture
def vicuna(llama):
    return Encoder(llama, LLAMA_IMAGE, LLAMA_VIDEO, make_template("vicuna", "clean", "front"), 4096)


def learned(encoded) -> list[int]:
    return [label for label in encoded.labels.tolist() if label != IGNORE_INDEX]


VICUNA_CASES = [case for case in cases("labels_vicuna_v1.json") if not case["tokenizer_legacy"]]


@pytest.mark.parametrize("case", VICUNA_CASES, ids=lambda case: case["name"])
def test_vicuna_equals_golden_ids_and_labels(vicuna, llama, case):
    """Where the original voided the labels (`warning`): each answer and its end, split as inside the text."""
    encoded = encode(vicuna, sample_of(case["conversations"], int(case["has_image"])))
    assert encoded.input_ids.tolist() == [LLAMA_IMAGE if i == -200 else i for i in case["input_ids"]]
    if not case["warning"]:
        assert encoded.labels.tolist() == case["labels"]
        return
    answers = [turn["value"] for turn in case["conversations"] if turn["from"] == "gpt"]
    ends = [f"{answer}</s>" for answer in answers]
    assert llama.decode(learned(encoded)).replace("</s> ", "</s>") == "".join(ends)
    at = np.flatnonzero(encoded.labels != IGNORE_INDEX)
    assert encoded.labels[at].tolist() == encoded.input_ids[at].tolist()


def test_vicuna_golden_cases_hold_both_kinds():
    assert {bool(case["warning"]) for case in VICUNA_CASES} == {True, False}


def test_vicuna_prompt_ends_at_the_header(vicuna, llama):
    sample = sample_of(turns("<image>\nq", "a", "r", "last answer"), 1)
    whole = encode(vicuna, sample).input_ids.tolist()
    prompt = vicuna.encode_prompt(sample, [ONE["image"]]).input_ids.tolist()
    assert prompt == whole[: len(prompt)]
    assert llama.decode(prompt).endswith("USER: r ASSISTANT:")
    assert llama.decode(whole[len(prompt) :]) == "last answer</s>"


def test_vicuna_supervises_no_character_of_the_user(vicuna):
    """`</s>` in a question, an answer that holds a header, an image within an answer, bytes of one character."""
    record = turns("<image>\na</s>b \u2603", "x ASSISTANT: y <image> z \u2603")
    encoded = encode(vicuna, sample_of(record, 2))
    at = [i for i, token in enumerate(encoded.input_ids.tolist()) if token == LLAMA_END]
    assert [int(encoded.labels[i]) for i in at] == [IGNORE_INDEX, LLAMA_END]
    alone = encode(vicuna, sample_of(turns("q", "<image>\nx ASSISTANT: y  z \u2603"), 1))  # the tag as it is moved
    assert learned(encoded)[-9:] == learned(alone)[-9:]
    assert set(encoded.labels[encoded.visual_positions]) == {IGNORE_INDEX}


def test_vicuna_takes_an_image_in_the_system_turn(vicuna):
    record = [{"from": "system", "value": "See <image> first."}, *turns("q", "a")]
    assert LLAMA_IMAGE in encode(vicuna, sample_of(record, 1)).input_ids


def test_vicuna_without_an_answer_is_refused(vicuna):
    with pytest.raises(DataError, match="nothing supervised"):
        encode(vicuna, sample_of(turns("Hello", "")))


@pytest.mark.parametrize(
    ("text", "num_images", "num_videos"),
    [("Hello there", 0, 0), ("<image>\nq", 1, 0), ("one: <image>\ntwo: <image>\n two", 2, 0), ("<video>", 0, 1)],
)
def test_vicuna_rendered_and_tokenised_at_once_gives_the_ids_of_training(vicuna, llama, text, num_images, num_videos):
    sample = sample_of(turns(text, "a", "r", "b"), num_images, num_videos)
    messages = [
        {"role": {"human": "user", "gpt": "assistant"}[turn.role], "content": turn.text} for turn in sample.turns
    ]
    asked = llama.apply_chat_template(
        messages, chat_template=chat_template("vicuna", "front"), return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = encode(vicuna, sample)
    assert asked["input_ids"] == encoded.input_ids.tolist()
    assert [bool(mask) for mask in asked["assistant_masks"]] == (encoded.labels != IGNORE_INDEX).tolist()
