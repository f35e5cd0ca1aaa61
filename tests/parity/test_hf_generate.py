"""Greedy answers equal those of transformers' own `generate`, alone and in a batch of unequal prompts."""

from __future__ import annotations

import pytest
import torch
from onevision_reference import KINDS, MIXED, SEVERAL, SINGLE, TEXT, VIDEO, Case

from llava_train.family.onevision.template import chat_template
from llava_train.model.attention import PACKED
from llava_train.model.generate import generate

EQUAL_FRAMES = Case("mixed", MIXED.images, (3, 3), MIXED.text)
NEW_TOKENS = 12


def ours(pair, cases):
    return generate(pair.forward, pair.ours.pack(cases, prompt=True), NEW_TOKENS, [], 0)


def theirs(pair, case):
    """Through the exported chat template, the PIL image processor and `generate`."""
    ids = torch.tensor([pair.theirs.input_ids(case, chat_template("qwen", "front"), prompt=True)])
    out = pair.theirs.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=[],
        pad_token_id=0,
        **pair.theirs.media((case,)),
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("case", [TEXT, SINGLE, SEVERAL, VIDEO, EQUAL_FRAMES], ids=lambda case: case.name)
def test_answer_equals_that_of_transformers(pair, case):
    expected = theirs(pair, case)
    assert len(expected) == NEW_TOKENS
    assert ours(pair, (case,)) == [expected]


def test_batched_answers_equal_those_one_at_a_time(pair):
    apart = [ours(pair, (case,))[0] for case in KINDS]
    assert len({tuple(answer) for answer in apart}) > 1
    assert ours(pair, KINDS) == apart


def test_answer_stops_before_the_end_token(pair):
    answer = ours(pair, (TEXT,))[0]
    batch = pair.ours.pack((TEXT,), prompt=True)
    end = answer[-1]
    assert generate(pair.forward, batch, NEW_TOKENS, [end], 0) == [answer[: answer.index(end)]]


def test_generation_leaves_packed_attention_and_mode_as_they_were(pair):
    pair.forward.train()
    ours(pair, (TEXT,))
    assert pair.forward.hf_model.config.text_config._attn_implementation == PACKED
    assert pair.forward.training
    pair.forward.eval()
