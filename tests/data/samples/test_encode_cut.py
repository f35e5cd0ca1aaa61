"""Samples longer than max_length, ended after an earlier answer; and counts without layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chat_templates import RELEASED
from transformers import AutoTokenizer

from llava_train.batch.packed import IGNORE_INDEX
from llava_train.data.samples.encode import Encoder
from llava_train.data.samples.sample import Sample, Turn
from llava_train.family.base import VisualLayout
from llava_train.shared.errors import DataError
from llava_train.text.checkpoint_template import stage_template
from llava_train.text.placeholders import prepare_tokenizer

LLAMA = Path(__file__).parents[2] / "golden" / "llama_tiny_tokenizer"
TOKENS = 5  # of each medium
STAGES = [("qwen", "clean"), ("qwen", "original"), ("vicuna", "clean"), ("checkpoint", "clean")]
CHAT = ["<image>\nWhat is shown?", "A cat.", "And <image>?", "A dog \u2603", "Sure?", "Yes, it barks.\n", "Ok", "Bye"]


@pytest.fixture(scope="module")
def llama():
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    prepare_tokenizer(tokenizer, 1024, 1025)
    return tokenizer


@pytest.fixture(params=STAGES, ids="-".join)
def encoder(request, tokenizer, llama):
    name, rule = request.param
    own = llama if name == "vicuna" else tokenizer
    own.chat_template = RELEASED
    ids = own.get_added_vocab()
    template = stage_template(name, rule, "keep", own, "key")

    def make(max_length: int, too_long="cut") -> Encoder:
        return Encoder(own, ids["<image>"], ids["<video>"], template, max_length, too_long)

    return make


def sample_of(texts: list[str], roles=("human", "gpt")) -> Sample:
    turns = [Turn(roles[i % 2], text) for i, text in enumerate(texts)]
    return Sample("id", "s", turns, [Path("i.png")] * sum(text.count("<image>") for text in texts))


def encode(encoder: Encoder, sample: Sample):
    return encoder.encode(sample, [VisualLayout("square", 8, 8, (1, 1), 1, TOKENS)] * len(sample.images))


def test_cut_is_the_longest_conversation_that_fits(encoder):
    """The second image stands in turn 3, so the whole may end after the answers of turns 4 and 6 alone."""
    sample = sample_of(CHAT)
    whole = encode(encoder(10**6), sample)
    shorter = [encode(encoder(10**6), replace(sample, turns=sample.turns[:count])) for count in (4, 6)]
    lengths = [len(one.input_ids) for one in shorter]
    assert lengths[0] < lengths[1] < len(whole.input_ids)
    for max_length in range(lengths[0], len(whole.input_ids)):
        cut = encode(encoder(max_length), sample)
        expected = shorter[max_length >= lengths[1]]
        assert cut.input_ids.tolist() == expected.input_ids.tolist() == whole.input_ids.tolist()[: len(cut.input_ids)]
        assert cut.labels.tolist() == expected.labels.tolist() == whole.labels.tolist()[: len(cut.labels)]
        assert cut.visual_positions.tolist() == whole.visual_positions.tolist()
        assert cut.visuals == whole.visuals
    with pytest.raises(DataError, match=f"longer than max_length .*max_length {lengths[0] - 1}"):
        encode(encoder(lengths[0] - 1), sample)
    with pytest.raises(DataError, match="longer than max_length"):
        encode(encoder(lengths[1], "skip"), sample)


def test_measure_counts_what_encode_makes(encoder):
    sample = sample_of(CHAT)
    measured = encoder(1).measure(sample)
    whole = encode(encoder(10**6), sample)
    assert (measured.text_tokens + 2 * TOKENS, measured.supervised) == (len(whole.input_ids), whole.num_supervised)
    assert len(measured.cuts) == 2
    for tokens, supervised in measured.cuts:
        cut = encode(encoder(tokens + 2 * TOKENS), sample)
        assert (len(cut.input_ids), cut.num_supervised) == (tokens + 2 * TOKENS, supervised)


def test_a_question_without_answer_goes_first(encoder):
    sample = sample_of(["Hi", "Hello.", "Bye"])
    [(tokens, _)] = encoder(1).measure(sample).cuts
    answered = encode(encoder(10**6), replace(sample, turns=sample.turns[:2]))
    assert encode(encoder(tokens), sample).input_ids.tolist() == answered.input_ids.tolist()


def test_no_cut_loses_a_medium_or_all_that_is_learned(encoder):
    assert not encoder(1).measure(sample_of(["Hi", "Hello.", "And <image>?", "A cat."])).cuts
    assert not encoder(1).measure(sample_of(["Hi", "Hello."])).cuts


def test_vicuna_is_not_cut_where_nothing_ends_the_answer(llama):
    template = stage_template("vicuna", "clean", "keep", llama, "key")
    encoder = Encoder(llama, 1024, 1025, template, 10**6, "cut")
    assert len(encoder.measure(sample_of(["a", "", "b", "c", "d", "e"])).cuts) == 1


@pytest.mark.parametrize("texts", [["<image>\nIgnored", "A cat."], ["<image>", "<image>"]])
def test_measure_counts_a_caption_behind_its_medium(tokenizer, texts):
    template = stage_template("plain", "clean", "front", tokenizer, "key")
    encoder = Encoder(tokenizer, 151646, 151647, template, 10**6)
    sample = sample_of(texts)
    encoded, measured = encode(encoder, sample), encoder.measure(sample)
    assert measured.text_tokens + TOKENS * len(sample.images) == len(encoded.input_ids)
    assert measured.supervised == encoded.num_supervised == (encoded.labels != IGNORE_INDEX).sum() > 0
    assert not measured.cuts


def test_a_tag_that_only_cleaning_makes_is_refused(tokenizer):
    noisy = "<imaQA_GT_caption_based_noisyge> <video> <video>"
    sample = Sample("id", "s", [Turn("human", noisy), Turn("gpt", "a")], [Path("i.png")], [Path("v.mp4")] * 2)
    sample = replace(sample, turns=[*sample.turns, Turn("human", "<image>")])
    encoder = Encoder(tokenizer, 151646, 151647, stage_template("qwen", "clean", "front", tokenizer, "key"), 10**6)
    with pytest.raises(DataError, match="tag/media mismatch"):
        encoder.measure(sample)
    with pytest.raises(DataError, match="tag/media mismatch"):
        encoder.encode(sample, [VisualLayout(kind, 8, 8, (1, 1), 1, TOKENS) for kind in ("video", "video", "square")])
