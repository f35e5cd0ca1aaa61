"""Any sample, every template and both tokenizers: what a sample is counted as, becomes, is cut to and refused for.

`pytest -m slow` runs the same at length.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import RELEASED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llava_train.batch.packed import IGNORE_INDEX
from llava_train.config.schema import VideoConfig
from llava_train.data.loading.collate import collate
from llava_train.data.media.sample_media import Limits, MediaReader, MediumSize
from llava_train.data.media.video import VideoReader
from llava_train.data.samples.encode import EncodedSample, Encoder
from llava_train.data.samples.parse import MediaRoots, to_answered, to_sample
from llava_train.data.samples.sample import Sample, Turn
from llava_train.family.base import VisualLayout
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.records.fields import LEARNED_KEYS, RECORD_KEYS, REFUSED
from llava_train.shared.errors import DataError
from llava_train.text.chat_template import chat_template
from llava_train.text.checkpoint_template import stage_template
from llava_train.text.media_tags import media_tags, normalise_tags
from llava_train.text.placeholders import add_tags
from llava_train.text.plain import PlainTemplate

GOLDEN = Path(__file__).parents[2] / "golden"
NO_LIMIT = 10**6
STAGES = [  # tokenizer, template, label rule, the checkpoint's own chat template
    ("qwen2_tokenizer", "qwen", "clean", ""),
    ("qwen2_tokenizer", "qwen", "original", ""),
    ("qwen2_tokenizer", "plain", "clean", ""),
    ("qwen2_tokenizer", "checkpoint", "clean", RELEASED),
    ("qwen2_tokenizer", "checkpoint", "clean", chat_template("qwen", "keep")),
    ("llama_tiny_tokenizer", "vicuna", "clean", ""),
    ("llama_tiny_tokenizer", "plain", "clean", ""),
    ("llama_tiny_tokenizer", "checkpoint", "clean", chat_template("vicuna", "keep")),
]
FRAGMENTS = [
    *("<image>", "<video>", "<image>\n") * 3,
    *("<ima", "ge>", "QA_GT_caption_based_noisy", "\n", "\n\n", " ", "\t", "\r\n"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "USER: ", "ASSISTANT:", "assistant\n"),
    *("What is shown?", "a cat", "12345", "don't", "</", "{{ x }}", "{%", "\\n", "\u2581"),
    *(
        "\u2603",
        "e\u0301",
        "\u00e9",
        "\u4f60\u597d",
        "\U0001f469\u200d\U0001f467",
        "\u202e",
        "\x00",
        "\u0338",
        "\ufffd",
    ),
]
LONG = [200, pytest.param(10_000, marks=pytest.mark.slow)]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=5).map("".join)
words = st.sampled_from(["", "a cat", "\n What?", "\u2603 "])
sides = st.integers(1, 400)


@dataclass(frozen=True)
class Case:
    encoder: Encoder
    sample: Sample
    layouts: Sequence[VisualLayout]
    media: MediaReader

    def encode(self) -> EncodedSample:
        self.sample.media()  # as whoever makes layouts asks for
        return self.encoder.encode(self.sample, self.layouts)

    def at_most(self, max_length: int) -> Encoder:
        encoder = copy(self.encoder)
        encoder.max_length, encoder._cuts = max_length, True
        return encoder


@pytest.fixture(scope="module")
def encoders() -> list[Encoder]:
    made = []
    tokenizers = {name: AutoTokenizer.from_pretrained(GOLDEN / name) for name in {stage[0] for stage in STAGES}}
    for tokenizer in tokenizers.values():
        add_tags(tokenizer)
    for folder, name, rule, jinja in STAGES:
        tokenizer = tokenizers[folder]
        tokenizer.chat_template = jinja
        ids = tokenizer.get_added_vocab()
        for policy in ("front", "keep"):
            template = stage_template(name, rule, policy, tokenizer, "key")
            made.append(Encoder(tokenizer, ids["<image>"], ids["<video>"], template, NO_LIMIT))
    return made


@st.composite
def cases(draw, encoders: list[Encoder]) -> Case:
    """A sample whose media are mostly those of its tags."""
    encoder = draw(st.sampled_from(encoders))
    if isinstance(encoder.template, PlainTemplate):
        turns = [Turn("human", "<image>" * draw(st.integers(0, 2)) + draw(texts)), Turn("gpt", draw(texts))]
    else:
        roles = draw(
            st.lists(st.sampled_from(["human", "gpt", "gpt", "given"]), max_size=5) | st.just(["gpt", "human"] * 4)
        )
        later = draw(st.sampled_from([texts, words]))
        turns = [Turn("human", draw(texts)), *(Turn(role, draw(later)) for role in roles)]
    if draw(st.integers(0, 3)) == 0:
        turns.insert(0, Turn("system", draw(texts)))
    num_images, num_videos = (sum(turn.text.count(tag) for turn in turns) for tag in ("<image>", "<video>"))
    counts = [(num_images, num_videos), (0, num_images + num_videos), (0, 0), (num_images + 1, num_videos)]
    images, videos = draw(st.sampled_from([*counts[:1] * 3, *counts]))
    sample = Sample("id", "s", turns, [Path("i.png")] * images, [Path("v.mp4")] * videos)
    geometry = OneVisionGeometry(32, 8, draw(st.sampled_from(["square", "anyres"])), ((1, 2), (2, 1), (2, 2)), 2)
    media = MediaReader(geometry, VideoReader(VideoConfig(1.0, 3), 1.0, NO_LIMIT), Limits(NO_LIMIT))
    try:
        order = sample.media()
    except DataError:
        order = []
    sizes = [MediumSize(kind, draw(sides), draw(sides), draw(st.integers(1, 5))) for kind, _ in order]
    return Case(encoder, sample, media.layouts_of(sizes), media)


def always(examples: int, holds: Callable[[Any], None], given_by: st.SearchStrategy) -> None:
    """Runs a property on as many examples, the same ones each time."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    fixed = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )
    fixed(given(given_by)(lambda case: holds(case)))()


def outcome(make: Callable[[], Any]) -> Any:
    """What it gives, or the reason of its DataError; any other error is a failure."""
    try:
        return make()
    except DataError as error:
        told = str(error).encode()  # a log can hold it
        if len(told) > 2000:
            pytest.fail(f"a message of {len(told)} bytes: {told[:200]!r}")
        return error.reason


@pytest.mark.parametrize("examples", LONG)
def test_counts_are_those_of_what_is_encoded(encoders, examples):
    def holds(case: Case) -> None:
        encoded, measured = outcome(case.encode), outcome(lambda: case.encoder.measure(case.sample))
        if isinstance(encoded, str):
            assert measured == encoded
            return
        visual = sum(layout.num_tokens for layout in case.layouts)
        assert measured.text_tokens + visual == len(encoded.input_ids)
        assert measured.supervised == encoded.num_supervised > 0

    always(examples, holds, cases(encoders))


@pytest.mark.parametrize("examples", LONG)
def test_labels_are_the_ids_of_answers_and_no_placeholder(encoders, examples):
    def holds(case: Case) -> None:
        encoded = outcome(case.encode)
        if isinstance(encoded, str):
            return
        ids, labels = encoded.input_ids, encoded.labels
        is_learned = labels != IGNORE_INDEX
        assert (labels[is_learned] == ids[is_learned]).all()
        placeholders = list(case.encoder.placeholders.values())
        assert not np.isin(labels, placeholders).any()
        assert encoded.visual_positions.tolist() == np.flatnonzero(np.isin(ids, placeholders)).tolist()
        pad = case.encoder._encode("<|endoftext|>")
        if len(pad) == 1 and "<|endoftext|>" not in "".join(t.text for t in case.sample.turns if t.role == "gpt"):
            assert pad[0] not in labels

    always(examples, holds, cases(encoders))


@pytest.mark.parametrize("examples", LONG)
def test_ids_between_media_decode_to_the_text_of_the_template(encoders, examples):
    def holds(case: Case) -> None:
        encoded = outcome(case.encode)
        if isinstance(encoded, str):
            return
        sample, template = case.sample, case.encoder.template
        pieces = template.pieces(sample.turns, media_tags(len(sample.images), len(sample.videos)))
        is_text = np.isin(np.arange(len(encoded.input_ids)), encoded.visual_positions, invert=True)
        decoded, written = text_of(case, encoded.input_ids[is_text]), plain("".join(piece.text for piece in pieces))
        if isinstance(template, PlainTemplate):  # SentencePiece puts a space before each text
            decoded, written = squeezed(decoded), squeezed(written)
        assert decoded == written
        if not template.always_supervised:
            learned = text_of(case, encoded.input_ids[encoded.labels != IGNORE_INDEX])
            answers = [turn.text for turn in sample.turns if turn.role == "gpt"]
            if case.layouts:
                answers = [normalise_tags(text, template._tag_policy) for text in answers]
            ended = "".join(text + template.end for text in answers if text or template.end != "</s>")
            if case.layouts:
                ended = re.sub("<image>|<video>", "", ended)
            assert squeezed(learned) == squeezed(ended)

    always(examples, holds, cases(encoders))


def text_of(case: Case, ids: np.ndarray) -> str:
    return plain(case.encoder._tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def squeezed(text: str) -> str:
    return plain("".join(plain(text).split()))


def plain(text: str) -> str:
    """As both tokenizers leave it: composed, and SentencePiece's mark of a space no other than one."""
    return unicodedata.normalize("NFC", text).replace("\u2581", " ")


@pytest.mark.parametrize("examples", LONG)
def test_a_cut_is_the_longest_shorter_conversation_that_fits(encoders, examples):
    def holds(drawn: tuple[Case, int]) -> None:
        case, below = drawn
        whole = outcome(case.encode)
        if isinstance(whole, str):
            return
        shorter = [len(case.encoder.encode(one, case.layouts).input_ids) for one in answered(case)]
        visual = sum(layout.num_tokens for layout in case.layouts)
        assert [cut[0] + visual for cut in case.encoder.measure(case.sample).cuts] == shorter
        room = [len(whole.input_ids), *shorter][below % (len(shorter) + 1)] - below // 8
        encoder = case.at_most(room)
        cut = outcome(lambda: encoder.encode(case.sample, case.layouts))
        fitting = [length for length in (*shorter, len(whole.input_ids)) if length <= room]
        if not fitting:
            assert cut == "longer than max_length"
            return
        assert cut.input_ids.tolist() == whole.input_ids[: max(fitting)].tolist()
        assert cut.labels.tolist() == whole.labels[: max(fitting)].tolist()
        assert cut.visual_positions.tolist() == whole.visual_positions.tolist()

    always(examples, holds, st.tuples(cases(encoders), st.integers(0, 15)))


def answered(case: Case) -> list[Sample]:
    """The conversations that end after an earlier answer, by the rule: with all media, and an end to the answer."""
    turns, sample = case.sample.turns, case.sample
    policy = case.encoder.template._tag_policy
    found = []
    for count in range(1, len(turns)):
        rest = "".join(text for _, text in turns[count:])
        loses_media = bool(sample.images or sample.videos) and ("<image>" in rest or "<video>" in rest)
        text = turns[count - 1].text
        text = normalise_tags(text, policy) if sample.images or sample.videos else text
        has_end = bool(text) or case.encoder.template.end != "</s>"
        if turns[count - 1].role == "gpt" and has_end and not loses_media:
            found.append(replace(sample, turns=turns[:count]))
    return found


@pytest.mark.parametrize("examples", LONG)
def test_a_sample_keeps_its_labels_in_a_pack(encoders, examples):
    def holds(drawn: list[Case]) -> None:
        found = [(outcome(case.encode), case) for case in drawn]
        sound = [(one, case) for one, case in found if not isinstance(one, str)]
        if not sound:
            return
        encoded = [one for one, _ in sound]
        batch = collate(encoded, [np.zeros((one.num_tiles, 3, 32, 32), np.uint8) for one in encoded], 32)
        for one, start, stop in zip(encoded, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
            assert batch.input_ids[start:stop].tolist() == one.input_ids.tolist()
            assert batch.labels[start:stop].tolist() == [IGNORE_INDEX, *one.labels[1:].tolist()]
        assert int((batch.labels != IGNORE_INDEX).sum()) == sum(one.num_supervised for one in encoded)

    always(examples, holds, st.lists(cases(encoders), min_size=1, max_size=3))


fields = st.sampled_from([*RECORD_KEYS, *LEARNED_KEYS * 2])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "text", "image", "video", "image_url", None])},
    optional={
        "index": st.integers(-1, 2) | json_values,
        "text": texts | json_values,
        "image": texts | json_values,
        "path": texts,
    },
)
contents = texts | texts | texts | st.just("a \ud800") | st.lists(parts, max_size=2) | json_values


NO_PATHS = [  # which no file can be called
    *("", "A" * 300, "a/" * 3000, "data:image/png;base64,iVBORw0KGgo=", "iVBORw0KGgo" + "A/+9" * 40),
    *("https://host/a.png", "file:///a.png", "s3://a/b.png"),
]


@st.composite
def records(draw) -> Any:
    """Mostly conversations, with something else in places."""
    keys = draw(st.sampled_from([("from", "value"), ("role", "content"), ("role", "content"), ("from", "content")]))
    names = ["human", "gpt", "user", "assistant", "system"]
    roles = ["user", *draw(st.lists(st.sampled_from(names) | json_values, max_size=3))]
    roles = draw(st.permutations(roles)) if draw(st.booleans()) else roles
    turns = [dict(zip(keys, (role, draw(contents)), strict=True)) for role in roles]
    for turn in turns:
        if draw(st.integers(0, 5)) == 0:
            turn[draw(fields)] = draw(st.sampled_from([0, 1, False, True, None, 0.5, [], [{"name": "x"}], "x"]))
    record = {draw(st.sampled_from(["conversations", "messages"])): turns}
    if draw(st.integers(0, 5)) == 0:
        record[draw(fields)] = draw(st.sampled_from(["Be brief.", 0, 1, True, None, [], [{"name": "x"}]]) | json_values)
    for key, usual in {"image": "a.png", "video": ["v.mp4"], "id": "7", "width": 8, "height": [8]}.items():
        if draw(st.integers(0, 3)) == 0:
            odd = json_values | st.sampled_from(["../a.png", "a\x00b", ["a.png", "b.png"], 0, *NO_PATHS])
            record[key] = draw(st.just(usual) | odd)
    for key in ("images", "videos"):
        if draw(st.integers(0, 5)) == 0:
            record[key] = draw(st.sampled_from(["a.png", ["a.png", ""], [None], "", None, NO_PATHS[:2]]) | json_values)
    if draw(st.integers(0, 5)) == 0:  # as a table stores them
        name = next(iter(record))
        record[name] = json.dumps(record[name])[: draw(st.sampled_from([None, None, -1]))]
    for key in ("imgs", "image_path", "Image", "media", "source"):
        if draw(st.integers(0, 9)) == 0:
            record[key] = draw(st.sampled_from(["a.png", ["a.png"], {"bytes": "x"}, 7, None]) | json_values)
    return draw(st.just(record) | json_values) if draw(st.integers(0, 9)) == 0 else record


def record_turns(record: dict) -> list[dict]:
    turns = record.get("conversations", record.get("messages"))
    return json.loads(turns) if isinstance(turns, str) else turns


@pytest.mark.parametrize("examples", LONG)
def test_a_bad_record_is_refused_by_name_and_raises_nothing_else(encoders, examples):
    roots = MediaRoots(Path("root"), sizes=True)

    def holds(drawn: tuple[Any, Encoder]) -> None:
        record, encoder = drawn
        sample = outcome(lambda: to_sample(record, "s", 0, roots))
        answered = outcome(lambda: to_answered(record, "s", 0, roots))
        if isinstance(sample, str):
            assert sample == answered == "bad record"
            return
        says_nothing = any(turn.role == "gpt" and not turn.text.strip() for turn in sample.turns)
        assert answered == ("bad record" if says_nothing else sample)
        said = [turn.get(key) for turn in record_turns(record) for key in LEARNED_KEYS if turn.get(key) is not None]
        assert sum(turn.role == "given" for turn in sample.turns) <= said.count(0)
        assert not any(record.get(key) or turn.get(key) for key in REFUSED for turn in record_turns(record))
        assert sample.images or sample.videos or not (record.get("imgs") == "a.png" and sample.is_tagged_text)
        measured = outcome(lambda: encoder.measure(sample))
        assert isinstance(measured, str) or measured.supervised > 0

    always(examples, holds, st.tuples(records(), st.sampled_from(encoders)))
