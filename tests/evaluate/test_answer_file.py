"""A file of answers is continued, never mixed: what is missing is asked, all else is refused or kept."""

from __future__ import annotations

import json

import pytest

from llava_train.data.samples.prompts import Prompt
from llava_train.data.samples.sample import Sample, Turn
from llava_train.evaluate.answer_file import AnswerFile
from llava_train.shared.errors import ConfigError, DataError, RunError

SETTINGS = {"model.init": "m", "max_new_tokens": 4}


def prompts(count, text="What?"):
    return [Prompt(str(i), Sample(str(i), "f", [Turn("human", f"{text} {i}")], record=str(i))) for i in range(count)]


def ask(samples):
    """Record 3 cannot be asked."""
    for sample in samples:
        bad = sample.id == "3"
        yield sample.error("missing file", "a.png") if bad else f"Answer\n{sample.id} é"


def answer(path, asked, skip=True, ask=ask, settings=SETTINGS):
    with AnswerFile(path, settings) as file:
        return file.answer(file.missing(asked), ask, skip)


def test_answers_of_any_characters_are_continued(tmp_path):
    path, ends = tmp_path / "out.jsonl", "a\u2028b\u2029c\u0085d\x0be\x1cf"
    asked = [Prompt(f"{i} {ends}", prompt.asked) for i, prompt in enumerate(prompts(2))]
    answer(path, asked, ask=lambda samples: (ends for _ in samples))
    assert "0 answered, 2 were there" in answer(path, asked, ask=lambda samples: iter(()))
    assert [json.loads(line)["answer"] for line in path.read_bytes().split(b"\n")[:-1]] == [ends] * 2


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused_to_ask(samples):
    raise AssertionError([sample.id for sample in samples])


def test_answers_are_joined_by_id(tmp_path):
    answer(tmp_path / "out.jsonl", prompts(2))
    assert [(line["id"], line["answer"]) for line in lines(tmp_path / "out.jsonl")] == [
        ("0", "Answer\n0 é"),
        ("1", "Answer\n1 é"),
    ]


def test_a_second_call_asks_what_is_missing_alone(tmp_path):
    path, asked = tmp_path / "out.jsonl", []
    answer(path, prompts(2))
    first = path.read_text()
    told = answer(path, prompts(3), ask=lambda samples: asked.extend(samples) or ask(samples))
    assert [sample.id for sample in asked] == ["2"]
    assert path.read_text().startswith(first)
    assert "1 answered, 2 were there" in told
    answer(path, prompts(3), ask=lambda samples: refused_to_ask(samples) if samples else iter(()))


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_every_torn_end_is_mended(tmp_path, kept):
    path = tmp_path / "out.jsonl"
    answer(path, prompts(3))
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[: second + kept])
    answer(path, prompts(3))
    assert path.read_bytes() == whole


def test_a_character_torn_in_two_is_mended(tmp_path):
    path = tmp_path / "out.jsonl"
    answer(path, prompts(1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("é".encode()) + 1])
    answer(path, prompts(1))
    assert path.read_bytes() == whole


def test_an_interrupted_call_keeps_what_was_answered(tmp_path):
    def stopped(samples):
        yield "one"
        raise KeyboardInterrupt

    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(path, prompts(2), ask=stopped)
    assert [line["answer"] for line in lines(path)] == ["one"]
    answer(path, prompts(2))
    assert [line["answer"] for line in lines(path)] == ["one", "Answer\n1 é"]


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "out.jsonl"
    answer(path, prompts(1))
    with pytest.raises(ConfigError) as caught:
        answer(path, prompts(1), settings={**SETTINGS, "max_new_tokens": 5, "seed": 1})
    assert [fault.key for fault in caught.value.faults] == ["max_new_tokens", "seed"]
    assert "is 5" in caught.value.faults[0].problem
    assert "begun with 4" in caught.value.faults[0].problem
    answer(path, prompts(1))


def test_a_file_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"out\.settings\.json"):
        answer(path, prompts(1))
    assert path.read_text() == "mine"
    (tmp_path / "out.settings.json").write_text(json.dumps(SETTINGS))
    path.write_text('{"text": 1}\n')
    with pytest.raises(DataError, match="line 1: no answer of ours"):
        answer(path, prompts(1))


def test_a_prompt_that_changed_is_refused(tmp_path):
    answer(tmp_path / "out.jsonl", prompts(2))
    with pytest.raises(DataError, match="record 0: changed prompt"):
        answer(tmp_path / "out.jsonl", prompts(2, "Why?"))


def test_a_bad_prompt_stops_or_is_listed(tmp_path):
    path, refused = tmp_path / "out.jsonl", tmp_path / "out.refused.jsonl"
    unread = Prompt("9", DataError("f", "9", "bad record", "is a list"))
    with pytest.raises(DataError, match="record 9: bad record"):
        answer(path, [*prompts(2), unread], skip=False, ask=refused_to_ask)
    with pytest.raises(DataError, match="record 3: missing file"):
        answer(path, prompts(6), skip=False)
    told = answer(path, [*prompts(6), unread])
    assert [line["id"] for line in lines(path)] == ["0", "1", "2", "4", "5"]
    assert [(line["id"], line["reason"]) for line in lines(refused)] == [("9", "bad record"), ("3", "missing file")]
    assert "2 answered, 3 were there" in told
    assert "2 could not be asked (1 bad record, 1 missing file)" in told
    answer(path, prompts(6), ask=lambda samples: ("mended" for _ in samples))
    assert lines(path)[-1]["answer"] == "mended"
    assert not refused.exists()


def test_two_processes_do_not_write_at_once(tmp_path):
    with (
        AnswerFile(tmp_path / "out.jsonl", SETTINGS),
        pytest.raises(RunError, match="another process"),
        AnswerFile(tmp_path / "out.jsonl", SETTINGS),
    ):
        pass
    answer(tmp_path / "out.jsonl", prompts(1))
