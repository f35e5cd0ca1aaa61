"""Greedy answers equal those of transformers' own `generate`, alone and in a batch of unequal prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from onevision_reference import KINDS, MIXED, SEVERAL, SINGLE, TEXT, VIDEO, Case

from llava_train.model.forward.attention import PACKED
from llava_train.model.forward.generate import generate
from llava_train.text.chat_template import chat_template

EQUAL_FRAMES = Case("mixed", MIXED.images, (3, 3), MIXED.text)
NEW_TOKENS = 12


def ours(pair, cases, pad=1, **options):
    return generate(pair.forward, pair.ours.pack(cases, prompt=True), NEW_TOKENS, [], pad, **options)


def theirs(pair, case, **options):
    """Through the exported chat template, the PIL image processor and `generate`."""
    ids = torch.tensor([pair.theirs.input_ids(case, chat_template("qwen", "front"), prompt=True)])
    out = pair.theirs.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        eos_token_id=[],
        pad_token_id=1,
        **{"do_sample": False, **options},
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


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.5}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_options_mean_what_they_mean_in_transformers(pair, options):
    cases = (TEXT, SINGLE, VIDEO)
    torch.manual_seed(0)
    expected = [theirs(pair, case, **options) for case in cases]
    assert expected != [theirs(pair, case) for case in cases]
    torch.manual_seed(0)
    assert [ours(pair, (case,), **options)[0] for case in cases] == expected


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.5}, {"num_beams": 3}])
def test_options_give_the_same_answers_in_a_batch(pair, options):
    """Padding does not count as said, not even by the token that the shortest prompt is answered with."""
    pad = ours(pair, (TEXT,), **options)[0][0]
    apart = [ours(pair, (case,), pad, **options)[0] for case in KINDS]
    assert ours(pair, KINDS, pad, **options) == apart


def test_cache_changes_no_answer(pair):
    """Against each answer made again from its whole text, token by token, by the forward of training."""
    answers = ours(pair, KINDS)
    assert len({tuple(answer) for answer in answers}) > 1
    for case, answer in zip(KINDS, answers, strict=True):
        batch = pair.ours.pack((case,), prompt=True)
        for token in answer:
            with torch.no_grad():
                assert int(pair.forward.hf_model.lm_head(pair.forward.hidden_states(batch)[-1]).argmax()) == token
            batch = longer(batch, token)


def longer(batch, token):
    length = batch.max_seqlen + 1
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, torch.tensor([token])]),
        position_ids=torch.arange(length),
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        max_seqlen=length,
    )


def test_min_new_tokens_counts_the_answer_alone(pair):
    batch = pair.ours.pack((TEXT, SINGLE), prompt=True)
    first = {answer[0] for answer in ours(pair, (TEXT, SINGLE))}
    assert generate(pair.forward, batch, NEW_TOKENS, list(first), 0) == [[], []]
    answers = generate(pair.forward, batch, NEW_TOKENS, list(first), 0, min_new_tokens=3)
    assert min(map(len, answers)) >= 3


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
