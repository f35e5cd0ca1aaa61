"""Held-out questions from records: what is asked, and what counts as right.

A record is one of the training data, whose last turn is the reference answer. It may say more: `answers`, a list of
references, with which the last turn may be left out; `choices`, the options, a list of texts or a mapping by letter;
`type`, one of exact, any_of, choice and number, else it is inferred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from llava_train.config.mixture import SourceConfig
from llava_train.data.index.stage_samples import refusal
from llava_train.data.samples.parse import BadRecord, MediaRoots, to_answered
from llava_train.data.samples.sample import Sample, Turn
from llava_train.data.samples.sampled_records import sampled_records
from llava_train.evaluate.scoring import (
    LETTERS,
    SCORE_TYPES,
    Reference,
    ScoreType,
    infer_score_type,
    read_number,
    read_option,
    read_options,
)
from llava_train.shared.errors import ConfigError, DataError
from llava_train.shared.unicode_names import other_form


@dataclass(frozen=True)
class Question:
    """`sample` ends in the reference answer."""

    sample: Sample
    reference: Reference

    @property
    def text(self) -> str:
        return "\n".join(turn.text for turn in self.sample.turns[:-1])


def read_questions(
    sources: Mapping[str, SourceConfig], limit: int, seed: int, score: ScoreType | Literal["auto"] = "auto"
) -> list[Question]:
    """All sources in order, the first `limit` records of each (0 = all). `score`: the type of all of them.

    Raises DataError that names every record that is none or whose media are missing, ConfigError where none is there.
    """
    questions, refused = list[Question](), list[DataError]()
    for name, source in sources.items():
        for position, record in islice(sampled_records(name, source, seed), limit or None):
            try:
                questions.append(_question(record, name, position, Path(source.media_root), score))
            except DataError as error:
                refused.append(error)
    if refused:
        raise refusal(refused, "mend them, or take them out of the file")
    if not questions:
        files = ", ".join(source.file for source in sources.values())
        raise ConfigError.one(", ".join(sources), f"{files} holds no samples", "give it records")
    return questions


def _question(record: Any, source: str, position: int, root: Path, score: ScoreType | Literal["auto"]) -> Question:
    sample = to_answered(record, source, position, MediaRoots(root, outside=True))
    if sample.turns[-1].role == "given":  # what is not learned may still be asked for
        sample = replace(sample, turns=[*sample.turns[:-1], Turn("gpt", sample.turns[-1].text)])
    try:
        answers, choices = _answers(record), _choices(record)
        if sample.turns[-1].role != "gpt":
            if not answers:
                raise BadRecord("no reference answer: the last turn must be the answer, or `answers` must hold some")
            [(usual, _)] = Counter(answers).most_common(1)
            sample = replace(sample, turns=[*sample.turns, Turn("gpt", usual)])
        given, last = bool(answers), sample.turns[-1].text
        kind = _kind(record, score) or ("choice" if choices else None)
        choices = choices or read_options(sample.turns[-2].text)
        kind = kind or infer_score_type(given, choices, answers[0] if given else last)
        reference = Reference(kind, answers or [last], choices if kind == "choice" else {})
        _refuse_unreadable(reference)
    except BadRecord as error:
        raise sample.error("bad record", str(error)) from error
    for file in (*sample.images, *sample.videos):
        if isinstance(file, Path):
            try:
                file.stat()
            except OSError as error:
                raise sample.error("missing file", f"{file}: {error.strerror}{other_form(file)}") from error
    return Question(sample, reference)


def _answers(record: dict[str, Any]) -> list[str]:
    answers = record.get("answers", [])
    texts = [str(answer) for answer in answers] if isinstance(answers, list) else []
    if "answers" in record and not (texts and all(isinstance(answer, str | int | float) for answer in answers)):
        raise BadRecord("`answers` is no list of texts")
    return texts


def _choices(record: dict[str, Any]) -> dict[str, str]:
    choices = record.get("choices", [])
    if isinstance(choices, list):
        choices = dict(zip(LETTERS, choices, strict=False)) if len(choices) <= len(LETTERS) else None
    if not isinstance(choices, dict) or not all(isinstance(text, str | int | float) for text in choices.values()):
        raise BadRecord("`choices` is neither a list of at most 26 texts nor a mapping by letter")
    if strange := sorted(str(letter) for letter in choices if letter not in list(LETTERS)):
        raise BadRecord(f"`choices` has {', '.join(strange)}; letters are A to Z")
    return {letter: str(text) for letter, text in choices.items()}


def _kind(record: dict[str, Any], score: ScoreType | Literal["auto"]) -> ScoreType | None:
    if score != "auto":
        return score
    if "type" in record and record["type"] not in SCORE_TYPES:
        raise BadRecord(f"type {record['type']!r} is unknown; known: {', '.join(SCORE_TYPES)}")
    return record.get("type")


def _refuse_unreadable(reference: Reference) -> None:
    """Nothing could be right for a reference that is itself no choice, or no number."""
    for answer in reference.answers:
        if reference.kind == "choice" and not read_option(answer, reference.choices):
            options = ", ".join(f"{letter}: {text}" for letter, text in reference.choices.items()) or "A to Z"
            remedy = "give its text, its letter, or its index from 0 on; `type` may name another way to score"
            raise BadRecord(f"reference {answer!r} is none of the options, {options}: {remedy}")
        if reference.kind == "number" and read_number(answer) is None:
            raise BadRecord(f"reference {answer!r} is no number")
