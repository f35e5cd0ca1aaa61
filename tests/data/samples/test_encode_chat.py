"""Ids of template checkpoint against the tokenizer's own ids of the rendered conversation."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_templates import RELEASED, message
from transformers import AutoTokenizer

from llava_train.batch.packed import IGNORE_INDEX
from llava_train.data.samples.encode import Encoder
from llava_train.data.samples.parse import MediaRoots, to_sample
from llava_train.family.base import VisualLayout
from llava_train.text.chat_template import chat_template
from llava_train.text.checkpoint_template import stage_template
from llava_train.text.placeholders import prepare_tokenizer

LLAMA = Path(__file__).parents[2] / "golden" / "llama_tiny_tokenizer"
LAYOUTS = {"image": VisualLayout("square", 8, 8, (1, 1), 1, 3), "video": VisualLayout("video", 8, 8, (2, 1), 2, 5)}
TAGS = {"<image>": 3, "<video>": 5}  # tokens of each
TURNS = [
    ("system", ["Be short. "]),
    ("user", ["<image>", "<image>", "<video>", "What is 1+1?\n\nSay \u2603"]),
    ("assistant", ["  Two\n"]),
    ("user", ["Sure?"]),
    ("assistant", ["Yes."]),
]
CASES = [TURNS[1:3], TURNS[3:], TURNS[:3], TURNS, TURNS[1:4]]


@pytest.fixture(scope="module")
def llama():
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    prepare_tokenizer(tokenizer, len(tokenizer), len(tokenizer) + 1)
    return tokenizer


def encoder(tokenizer, jinja: str) -> Encoder:
    tokenizer.chat_template = jinja
    ids = tokenizer.get_added_vocab()
    template = stage_template("checkpoint", "clean", "keep", tokenizer, "key")
    return Encoder(tokenizer, ids["<image>"], ids["<video>"], template, 4096)


def sample(turns):
    conversations = [{"role": role, "content": "\n".join(parts)} for role, parts in turns]
    media = [part for _, parts in turns for part in parts if part in TAGS]
    record = {"image": ["i.png"] * media.count("<image>"), "video": ["v.mp4"] * media.count("<video>")}
    return to_sample({"conversations": conversations, **record}, "s", 0, MediaRoots(Path("root")))


def expected(tokenizer, turns, prompt: bool, jinja: str) -> list[int]:
    """What a processor does: render, repeat each tag by its tokens, tokenise."""
    messages = [message(role, *parts) for role, parts in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    for tag, count in TAGS.items():
        text = text.replace(tag, tag * count)
    if jinja == RELEASED and not prompt:  # trained behind the prompt
        text = text.replace("<|im_start|>assistant \n", "<|im_start|>assistant\n")
    return tokenizer(text, add_special_tokens=not text.startswith("<s>"))["input_ids"]


def encoded(encode, turns) -> tuple[list[int], list[int]]:
    one = sample(turns)
    result = encode(one, [LAYOUTS[medium.kind] for medium in one.media()])
    return result.input_ids.tolist(), result.labels.tolist()


@pytest.mark.parametrize("turns", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("name", ["released", "qwen", "vicuna"])
def test_ids_are_those_of_the_rendered_text(tokenizer, llama, name, turns):
    jinja = RELEASED if name == "released" else chat_template(name, "keep")
    own = llama if name == "vicuna" else tokenizer
    made = encoder(own, jinja)
    ids, labels = encoded(made.encode, turns)
    assert ids == expected(own, turns, False, jinja)
    asked, _ = encoded(made.encode_prompt, turns)
    answered = turns[-1][0] == "assistant"
    assert asked == expected(own, turns[:-1] if answered else turns, True, jinja)
    if answered and (jinja != RELEASED or len(turns) < 5):
        assert ids[: len(asked)] == asked
    end = {"vicuna": "</s>"}.get(name, "<|im_end|>")
    answers = "".join(parts[0] + end for role, parts in turns if role == "assistant")
    learned = [i for i in labels if i != IGNORE_INDEX]
    assert own.decode(learned).replace("</s> ", "</s>").strip() == answers.strip()
    assert learned == [i for i, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX]


def test_special_tokens_come_first_as_the_processor_adds_them(llama):
    jinja = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
    made = encoder(llama, jinja + "{% if add_generation_prompt %}assistant: {% endif %}")
    llama.add_bos_token = True
    ids, labels = encoded(made.encode, [("user", ["Hi"]), ("assistant", ["there"])])
    assert ids == llama("user: Hi</s>assistant: there</s>")["input_ids"]
    assert ids[0] == llama.bos_token_id
    assert labels[0] == IGNORE_INDEX
