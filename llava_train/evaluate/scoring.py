"""How an answer is scored against its references, and how sure a mean of scores is.

Enters: the text of a model, a `Reference`. Leaves: a score from 0 to 1. No score reads more than these two.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, get_args

import numpy as np

ScoreType = Literal["exact", "any_of", "choice", "number"]
SCORE_TYPES: tuple[ScoreType, ...] = get_args(ScoreType)
AGREEING = 3  # people whose agreement makes an answer wholly right: Antol et al. 2015, VQA
Z95 = 1.959964  # half width of a 95 % interval of the normal distribution, in standard deviations
RESAMPLES = 2000

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPTION_LINE = re.compile(r"^\s*\(?([A-Z])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
_ALONE = re.compile(r"[\s*(\[\"']*([A-Za-z])[\s*)\]\"'.:,]*")
_FIRST = re.compile(r"[\s*\[\"']*(?:\(([A-Za-z])\)|([A-Z])[*\"']*[).:])")
_STATED = re.compile(r"(?i:\b(?:answer|choice|option)(?:\s+is|\s*:|\s*=|))[\s:*(\"']*([A-Z])(?![A-Za-z'])")
_BRACKETED = re.compile(r"\(([A-Za-z])\)|\*\*([A-Z])\*\*")
_STANDING = re.compile(r"(?<![A-Za-z'])([B-HJ-Z])(?![A-Za-z'])")  # A and I are words
_NUMERAL = re.compile(r"\s*[-+\u2212]?[\d.,]+\s*%?\s*")
_INDEX = re.compile(r"\d{1,2}(?:\.0)?")  # tables with empty cells store whole numbers as 1.0
_NUMBER = re.compile(
    r"(?<![\w.])([-+\u2212]?)\s?[$€£¥]?\s?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)([eE][-+]?\d+)?(?![.,]?\d)"
)


@dataclass(frozen=True)
class Reference:
    """What counts as right. `answers` is not empty; `choices`, by letter, is empty where the letters stand alone."""

    kind: ScoreType
    answers: Sequence[str]
    choices: Mapping[str, str] = field(default_factory=dict)


def normalise(text: str) -> str:
    """Answers are compared without case, surrounding space and a final full stop, and composed (NFC)."""
    return unicodedata.normalize("NFC", text.strip().lower().removesuffix(".").strip())


def score(predicted: str, reference: Reference, tolerance: float) -> float:
    """From 0 to 1; only any_of knows values between. Of several answers, one that fits is enough for the other kinds.

    tolerance: share of the reference by which a number may be off, as the 5 % of Methani et al. 2020 (PlotQA), which
    ChartQA (Masry et al. 2022) calls relaxed accuracy; 0 is hit by 0 alone.
    """
    if reference.kind == "any_of":
        return vqa_accuracy(predicted, reference.answers)
    if reference.kind == "choice":
        answers, choices = reference.answers, reference.choices
        by_index = any(read_index(answer, choices) for answer in answers)  # as who learned from these answers, too
        letter = read_option(predicted, choices) if by_index else read_letter(predicted, choices)
        return float(bool(letter) and letter in {read_option(answer, choices) for answer in answers})
    if reference.kind == "number":
        found, wanted = read_number(predicted), [read_number(answer) for answer in reference.answers]
        share = Decimal(str(tolerance))
        return float(found is not None and any(w is not None and abs(found - w) <= share * abs(w) for w in wanted))
    return float(normalise(predicted) in map(normalise, reference.answers))


def vqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Mean over the people who answered of min(agreeing others / 3, 1), each left out once, as VQA's evaluation does.

    With fewer than four answers that never reaches 1, so they count as spellings of which one is enough. Texts are
    compared by `normalise`; VQA's own evaluation also drops articles and spells numbers out.
    Worked case, 3 of 10 said it: without one of these 2 agree, without another 3 -> (3 * 2/3 + 7 * 1) / 10 = 0.9.
    """
    matches = [normalise(answer) == normalise(predicted) for answer in answers]
    if len(answers) <= AGREEING:
        return float(any(matches))
    return sum(min((sum(matches) - match) / AGREEING, 1.0) for match in matches) / len(matches)


def read_letter(text: str, choices: Mapping[str, str]) -> str:
    """The letter that an answer chooses, "" where it chooses none or several.

    In this order: the letter alone; the text of one option; a letter at the start with `)`, `.` or `:`, or before its
    option; the last that is called the answer, choice or option; the one in brackets or bold; the one option whose text
    stands in the answer; the one capital that stands alone, A and I excepted. Worked cases with A: cat, B: dog: `b.`,
    `Dog`, `(B) dog`, `B dog`, `A? No, the answer is B`, `It shows a dog` -> B; `a cat and a dog` -> "".
    """
    valid = set(choices) or set(LETTERS)
    texts = {letter: normalise(option) for letter, option in choices.items()}
    if match := _ALONE.fullmatch(text):
        return _in(valid, match[1])
    if chosen := _only(letter for letter, option in texts.items() if option == normalise(text)):
        return chosen
    if match := _FIRST.match(text):
        return _in(valid, match[1] or match[2])
    first, _, rest = text.strip().partition(" ")
    if first in texts and normalise(rest) == texts[first]:
        return first
    if stated := [letter for letter in _STATED.findall(text) if letter in valid]:
        return str(stated[-1])
    if chosen := _only(_in(valid, a or b) for a, b in _BRACKETED.findall(text)):
        return chosen
    if named := _named(text, texts):
        return _only(named)
    return _only(_in(valid, letter) for letter in _STANDING.findall(text))


def read_option(reference: str, choices: Mapping[str, str]) -> str:
    """The letter that a reference means: as answers are read, or an index. "" where it is none of the options."""
    return read_letter(reference, choices) or read_index(reference, choices)


def read_index(text: str, choices: Mapping[str, str]) -> str:
    """The letter of the option with that number, from 0 on as data sets store it; "" where there is none, and where
    options are numbers themselves. Worked case with A: cat, B: dog: `1` -> B, `2` -> "", `A` -> ""."""
    if not _INDEX.fullmatch(text.strip()) or any(map(_NUMERAL.fullmatch, choices.values())):
        return ""
    letters, index = sorted(choices), int(float(text))
    return letters[index] if index < len(letters) else ""


def read_number(text: str) -> Decimal | None:
    """The one number in a text; None where there is none or several.

    Sign, thousands in commas and an exponent are read, currency and percent signs passed over: `about $1,200.50` ->
    1200.50, `12 %` -> 12, `3 of 4` -> None.
    """
    found = _NUMBER.findall(text)
    if len(found) != 1:
        return None
    sign, digits, exponent = found[0]
    number = Decimal(digits.replace(",", "") + exponent)
    return -number if sign in ("-", "\u2212") else number


def read_options(question: str) -> dict[str, str]:
    """Options that a question lists, each on a line of its own as `A. cat`, `A) cat`, `(A) cat` or `A: cat`, from A on
    without a gap; empty where it lists fewer than two."""
    found = dict(_OPTION_LINE.findall(question))
    letters = LETTERS[: len(found)]
    return {letter: found[letter] for letter in letters} if len(found) > 1 and set(letters) == set(found) else {}


def infer_score_type(has_answers: bool, choices: Mapping[str, str], answer: str) -> ScoreType:
    """The kind of a record that names none: any_of with `answers`; choice with options of which the reference is one;
    number where the reference is one with a decimal point or a percent sign; else exact.

    A whole number is compared exactly: 5 % would make 2020 right for 1950, and 20 for 21.
    """
    if choices and read_letter(answer, choices):
        return "choice"
    if has_answers:
        return "any_of"
    is_number = (
        re.fullmatch(r"[-+\u2212]?[$€£¥]?[\d,]*\.?\d+\s?%?\.?", answer.strip()) and read_number(answer) is not None
    )
    return "number" if is_number and ("%" in answer or "." in answer.strip().removesuffix(".")) else "exact"


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_score(scores: Sequence[float], seed: int) -> Mean:
    """Wilson's interval (1927) where all scores are 0 or 1, else the bootstrap's."""
    if set(scores) <= {0.0, 1.0}:
        return wilson(sum(map(int, scores)), len(scores))
    return bootstrap(scores, [1.0] * len(scores), seed)


def wilson(successes: int, count: int) -> Mean:
    """Worked case: 8 of 10 -> 0.490 to 0.943 (Brown, Cai and DasGupta 2001 recommend it for small counts)."""
    share, z2 = successes / count, Z95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Mean(share, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap(sums: Sequence[float], weights: Sequence[float], seed: int) -> Mean:
    """sum(sums) / sum(weights), and the middle 95 % of that ratio over samples drawn with replacement (Efron 1979)."""
    totals, counts = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    rng = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, len(totals), len(totals))
        ratios[i] = totals[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Mean(float(totals.sum() / counts.sum()), float(low), float(high))


def _in(valid: set[str], letter: str) -> str:
    return letter.upper() if letter.upper() in valid else ""


def _only(letters) -> str:
    """The one letter that is named, however often; "" where there is none or several."""
    distinct = set(letters) - {""}
    return distinct.pop() if len(distinct) == 1 else ""


def _named(text: str, texts: Mapping[str, str]) -> set[str]:
    """Letters of the options that stand in a text as whole words, but not within another that stands there."""
    said = normalise(text)
    found = {letter: t for letter, t in texts.items() if t and re.search(rf"(?<!\w){re.escape(t)}(?!\w)", said)}
    return {a for a, t in found.items() if not any(t != other and t in other for other in found.values())}
