"""Records to questions: what is asked, what counts as right, and what is refused by name."""

import json

import pytest
from runs import TINY

from llava_train.config.mixture import SourceConfig
from llava_train.evaluate.questions import read_questions
from llava_train.shared.errors import ConfigError, DataError

HUMAN = {"from": "human", "value": "What is it?"}
OPTIONS = {"from": "human", "value": "What is it?\nA. cat\nB. dog"}
GPT = {"from": "gpt", "value": "B"}


@pytest.fixture
def read(tmp_path):
    def read(*records: dict, **settings):
        path = tmp_path / "own.json"
        path.write_text(json.dumps(records))
        return read_questions({"own": SourceConfig(str(path), str(TINY))}, settings.pop("limit", 0), 0, **settings)

    return read


@pytest.mark.parametrize(
    ("record", "kind", "answers", "choices"),
    [
        ({"conversations": [HUMAN, GPT]}, "exact", ["B"], {}),
        ({"conversations": [OPTIONS, GPT]}, "choice", ["B"], {"A": "cat", "B": "dog"}),
        ({"conversations": [OPTIONS, GPT], "type": "exact"}, "exact", ["B"], {}),
        ({"conversations": [HUMAN, GPT], "choices": ["cow", "hen"]}, "choice", ["B"], {"A": "cow", "B": "hen"}),
        ({"conversations": [HUMAN], "answers": ["hen"], "choices": {"X": "hen"}}, "choice", ["hen"], {"X": "hen"}),
        ({"conversations": [HUMAN, GPT], "type": "choice"}, "choice", ["B"], {}),
        (
            {"conversations": [HUMAN], "answers": [1], "choices": ["cow", "hen"]},
            "choice",
            ["1"],
            {"A": "cow", "B": "hen"},
        ),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "0"}], "choices": ["hen"]}, "choice", ["0"], {"A": "hen"}),
        ({"conversations": [HUMAN], "answers": [2], "choices": ["2", "3"]}, "choice", ["2"], {"A": "2", "B": "3"}),
        ({"conversations": [HUMAN], "answers": ["x"], "choices": ["y"], "type": "any_of"}, "any_of", ["x"], {}),
        ({"conversations": [HUMAN], "answers": ["a", "b", "b"]}, "any_of", ["a", "b", "b"], {}),
        ({"conversations": [HUMAN, GPT], "answers": [3]}, "any_of", ["3"], {}),
        ({"conversations": [HUMAN], "answers": ["3.5"], "type": "number"}, "number", ["3.5"], {}),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "3.5"}]}, "number", ["3.5"], {}),
    ],
)
def test_a_record_says_what_is_right(read, record, kind, answers, choices):
    [question] = read(record)
    found = question.reference
    assert (found.kind, list(found.answers), dict(found.choices)) == (kind, answers, choices)
    assert question.sample.turns[-1].role == "gpt"


def test_the_loss_is_of_the_answer_that_most_gave(read):
    [question] = read({"conversations": [HUMAN], "answers": ["a", "b", "b"]})
    assert question.sample.turns[-1].text == "b"
    assert question.text == "What is it?"


def test_one_type_may_be_set_for_all(read):
    records = [{"conversations": [HUMAN, {"from": "gpt", "value": "7"}], "type": "exact"}] * 2
    assert [q.reference.kind for q in read(*records, score="number")] == ["number", "number"]


def test_limit_takes_the_first_of_each_source(read):
    records = [{"id": str(i), "conversations": [HUMAN, GPT]} for i in range(3)]
    assert [q.sample.id for q in read(*records, limit=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"conversations": [HUMAN]}, "the last turn must be the answer, or `answers`"),
        ({"conversations": [HUMAN, GPT], "type": "anyof"}, "known: exact, any_of, choice, number"),
        ({"conversations": [HUMAN, GPT], "answers": "yes"}, "`answers` is no list of texts"),
        ({"conversations": [HUMAN], "answers": []}, "`answers` is no list of texts"),
        ({"conversations": [HUMAN, GPT], "choices": "AB"}, "`choices` is neither a list"),
        ({"conversations": [HUMAN, GPT], "choices": ["x"] * 27}, "`choices` is neither a list"),
        ({"conversations": [HUMAN, GPT], "choices": {"one": "x"}}, "letters are A to Z"),
        ({"conversations": [OPTIONS, {"from": "gpt", "value": "C"}], "type": "choice"}, "none of the options, A: cat"),
        ({"conversations": [HUMAN, GPT], "choices": ["cat"]}, "'B' is none of the options, A: cat: give its text"),
        ({"conversations": [HUMAN], "answers": [2], "choices": ["cow", "hen"]}, "'2' is none of the options, A: cow"),
        ({"conversations": [HUMAN], "answers": [1], "choices": ["2", "3"]}, "'1' is none of the options, A: 2"),
        ({"conversations": [HUMAN], "answers": ["pig", "cow"], "choices": ["cow"]}, "'pig' is none of the options"),
        ({"conversations": [HUMAN, GPT], "type": "number"}, "'B' is no number"),
        ({"image": "none.png", "conversations": [{"from": "human", "value": "<image>?"}, GPT]}, "none.png"),
        ({"image": "A" * 9000, "conversations": [{"from": "human", "value": "<image>?"}, GPT]}, "(9,000 characters)"),
    ],
)
def test_what_could_never_be_right_is_refused_beside_the_others(read, record, told):
    with pytest.raises(DataError) as caught:
        read({"conversations": [HUMAN, GPT]}, record, {"id": "also", **record})
    assert told in str(caught.value)
    assert "2 such samples" in str(caught.value)
    assert "(id also)" in str(caught.value)
    assert "take them out of the file" in str(caught.value)


def test_a_file_without_questions_is_told(read):
    with pytest.raises(ConfigError, match="holds no samples"):
        read()
