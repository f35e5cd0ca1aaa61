"""The figures of an evaluation: scores and losses by source and type, each with its interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from llava_train.evaluate.prediction import Prediction
from llava_train.evaluate.scoring import Mean, bootstrap, mean_score

ALL = "all"


@dataclass(frozen=True)
class AnswerWithLoss:
    """What a model made of one question: its answer, and the summed cross-entropy of the reference's tokens."""

    predicted: str
    loss: float
    tokens: int


@dataclass(frozen=True)
class Row:
    """The figures of some questions. loss: per token of the references."""

    source: str
    type: str
    count: int
    score: Mean
    loss: Mean


def rows(
    predictions: Sequence[Prediction], scores: Sequence[float], said: Sequence[AnswerWithLoss], seed: int
) -> list[Row]:
    """By source and type, then the same over all types and over all sources; each group of questions once."""
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for i, p in enumerate(predictions):
        for key in ((p.source, p.type), (p.source, ALL), (ALL, p.type), (ALL, ALL)):
            groups[key].append(i)
    distinct: dict[tuple[int, ...], tuple[str, str]] = {}
    for key in sorted(groups, key=lambda key: (key[0] == ALL, key[0], key[1] == ALL, key[1])):
        distinct.setdefault(tuple(groups[key]), key)
    return [_row(key, [(scores[i], said[i]) for i in members], seed) for members, key in distinct.items()]


def _row(key: tuple[str, str], members: Sequence[tuple[float, AnswerWithLoss]], seed: int) -> Row:
    score = mean_score([score for score, _ in members], seed)
    loss = bootstrap([said.loss for _, said in members], [said.tokens for _, said in members], seed)
    return Row(*key, len(members), score, loss)


def summary_table(rows: Sequence[Row]) -> Table:
    made = Table("source", "type", title="scores and losses per token of the references, with 95 % intervals")
    for name in ("questions", "score", "loss"):
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(row.source, row.type, f"{row.count:,}", with_interval(row.score), with_interval(row.loss))
    return made


def with_interval(mean: Mean) -> str:
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
