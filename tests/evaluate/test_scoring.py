"""Scores and intervals, against cases worked by hand."""

from decimal import Decimal

import pytest

from llava_train.evaluate.scoring import (
    Reference,
    bootstrap,
    infer_score_type,
    mean_score,
    read_letter,
    read_number,
    read_options,
    score,
    vqa_accuracy,
    wilson,
)

PETS = {"A": "cat", "B": "dog", "C": "hot dog"}


@pytest.mark.parametrize(("said", "right"), [("Red.", 1), (" red ", 1), ("dark red", 0), ("", 0)])
def test_exact_ignores_case_space_and_a_full_stop(said, right):
    assert score(said, Reference("exact", ["red"]), 0.05) == right
    assert score(said, Reference("exact", ["blue", "RED"]), 0.05) == right


@pytest.mark.parametrize("kind", ["exact", "any_of", "choice"])
def test_texts_are_compared_in_one_form_of_unicode(kind):
    composed, apart = "caf\u00e9", "cafe\u0301"
    for said, answer in ((composed, apart), (apart, composed), (f"the {composed}", f"the {apart}")):
        assert score(said, Reference(kind, [answer], {"A": answer, "B": "cafe"} if kind == "choice" else {}), 0.05) == 1


@pytest.mark.parametrize(
    ("agreeing", "accuracy"),
    [
        (0, 0.0),
        (1, 0.3),  # left out itself: 0; nine times 1/3
        (2, 0.6),  # twice 1/3, eight times 2/3
        (3, 0.9),  # three times 2/3, seven times 1
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_any_of_ten_people_is_the_leave_one_out_mean(agreeing, accuracy):
    answers = ["yes"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("Yes.", answers) == pytest.approx(accuracy)
    assert score("Yes.", Reference("any_of", answers), 0.05) == pytest.approx(accuracy)


def test_any_of_few_spellings_needs_one():
    assert [vqa_accuracy("ny", ["NYC", "NY", "New York"][:n]) for n in (1, 2, 3)] == [0.0, 1.0, 1.0]
    assert vqa_accuracy("ny", ["NY", "NY", "NYC", "York"]) == pytest.approx((2 * 1 / 3 + 2 * 2 / 3) / 4)


def test_an_index_is_the_option_of_that_number_from_0():
    index, letter = Reference("choice", ["1"], PETS), Reference("choice", ["B"], PETS)
    assert [score(said, index, 0.05) for said in ("1", "B", "dog", "1.0", "2", "C", "3")] == [1, 1, 1, 1, 0, 0, 0]
    assert [score(said, letter, 0.05) for said in ("1", "B")] == [0, 1]
    numbers = Reference("choice", ["2"], {"A": "2", "B": "3", "C": "1"})  # no index where options are numbers
    assert [score(said, numbers, 0.05) for said in ("2", "A", "1", "0", "C")] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("Dog.", "B"),
        ("hot dog", "C"),
        ("(B) dog", "B"),
        ("B. dog", "B"),
        ("B dog", "B"),
        ("B: because of the ears", "B"),
        ("The answer is B.", "B"),
        ("the correct answer is: (B)", "B"),
        ("Answer: **B**", "B"),
        ("A? No, the answer is B", "B"),
        ("Option A is wrong, so option B", "B"),
        ("I would say (b), for its ears", "B"),
        ("It shows a dog", "B"),
        ("It is a hot dog", "C"),
        ("Surely B, I think", "B"),
        ("A", "A"),
        ("a cat and a dog", ""),
        ("B or C", ""),
        ("D", ""),
        ("The answer is D", ""),
        ("A hat", ""),
        ("I do not know", ""),
        ("", ""),
    ],
)
def test_a_choice_is_read_from_what_models_write(text, letter):
    assert read_letter(text, PETS) == letter
    assert score(text, Reference("choice", ["B"], PETS), 0.05) == (letter == "B")
    assert score(text, Reference("choice", ["dog"], PETS), 0.05) == (letter == "B")


def test_letters_alone_are_options_of_their_own():
    assert [read_letter(text, {}) for text in ("c", "The answer is E", "no idea")] == ["C", "E", ""]


def test_options_are_read_from_the_lines_of_a_question():
    assert read_options("Which?\nA. cat\n(B) dog\nC: hot dog\nAnswer by letter.") == PETS
    assert read_options("Which?\nA. cat\nC. dog") == {}
    assert read_options("A. Einstein said it. Who?") == {}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        ("about $1,200.50", "1200.50"),
        ("12 %", "12"),
        ("-3.5 degrees", "-3.5"),
        ("\u22123", "-3"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("It is 7.", "7"),
        ("7cm", "7"),
        ("3 of 4", None),
        ("1990-2000", None),
        ("1.2.3", None),
        ("A4", None),
        ("none", None),
    ],
)
def test_a_number_is_read_where_there_is_one(text, number):
    assert read_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("said", "wanted", "tolerance", "right"),
    [
        ("1.05", "1.0", 0.05, 1),  # at the bound, which floats would miss
        ("1.051", "1.0", 0.05, 0),
        ("0.95", "1.0", 0.05, 1),
        ("-95", "-100", 0.05, 1),
        ("-100", "100", 0.05, 0),
        ("0", "0", 0.05, 1),
        ("0.001", "0", 0.05, 0),
        ("105", "100", 0.0, 0),
        ("100.0", "100", 0.0, 1),
        ("no number", "100", 0.05, 0),
    ],
)
def test_a_number_may_be_off_by_the_tolerance(said, wanted, tolerance, right):
    assert score(said, Reference("number", [wanted]), tolerance) == right


@pytest.mark.parametrize(
    ("has_answers", "choices", "answer", "kind"),
    [
        (False, PETS, "B", "choice"),
        (True, PETS, "dog", "choice"),
        (False, PETS, "yes", "exact"),
        (True, {}, "3.5", "any_of"),
        (False, {}, "3.5", "number"),
        (False, {}, "12%", "number"),
        (False, {}, "$1,200.50", "number"),
        (False, {}, "2020", "exact"),
        (False, {}, "7.", "exact"),
        (False, {}, "3.5 apples", "exact"),
        (False, {}, "red", "exact"),
    ],
)
def test_the_kind_of_a_record_that_names_none(has_answers, choices, answer, kind):
    assert infer_score_type(has_answers, choices, answer) == kind


def test_wilsons_interval():
    mean = wilson(8, 10)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert (wilson(0, 10).low, wilson(0, 10).high) == pytest.approx((0, 0.2775), abs=1e-4)
    assert (wilson(10, 10).low, wilson(10, 10).high) == pytest.approx((0.7225, 1), abs=1e-4)


def test_graded_scores_and_ratios_are_bootstrapped_by_a_seed():
    scores = [0.0, 0.3, 0.6, 0.9, 1.0] * 40
    mean = mean_score(scores, seed=1)
    half = 1.96 * (sum((s - 0.56) ** 2 for s in scores) / 200) ** 0.5 / 200**0.5  # the normal approximation
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.56, 0.56 - half, 0.56 + half), abs=0.01)
    assert mean_score(scores, seed=1) == mean != mean_score(scores, seed=2)
    assert mean_score([1.0, 0.0], seed=1) == wilson(1, 2)
    ratio = bootstrap([2.0, 30.0], [1.0, 10.0], seed=0)
    assert ratio.value == pytest.approx(32 / 11)
    assert (ratio.low, ratio.high) == (2.0, 3.0)
