"""Evaluations of the same questions side by side: what each scores, and how far it is from the first.

Enters: folders that `evaluate` wrote. Leaves: a table. Differences are taken question by question, so that their
intervals are free of what makes one question harder than another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from llava_train.config.rules.compare import PREDICTIONS
from llava_train.evaluate.scoring import Mean, bootstrap, mean_score
from llava_train.evaluate.summary import with_interval
from llava_train.shared.whole_files import whole_lines

SEED = 0  # of the intervals

Scores = dict[str, list[tuple[tuple[str, str], float]]]  # source -> ((record, question), score) in order


@dataclass(frozen=True)
class Change:
    score: Mean
    difference: Mean  # from the first evaluation

    @property
    def verdict(self) -> str:
        """up or down where the 95 % interval of the difference leaves 0 out; else nothing says that it changed."""
        return "up" if self.difference.low > 0 else "down" if self.difference.high < 0 else "as before"


def read_scores(folder: Path) -> Scores:
    scores: Scores = {}
    for said in map(json.loads, whole_lines(folder / PREDICTIONS)):
        scores.setdefault(said["source"], []).append(((said["record"], said["question"]), said["score"]))
    return scores


def compare(before: Scores, after: Scores) -> dict[str, Change]:
    """By source. Raises ValueError where the two are not about the same questions."""
    changes = {}
    for source in {**before, **after}:
        old, new = before.get(source, []), after.get(source, [])
        if [question for question, _ in old] != [question for question, _ in new]:
            raise ValueError(f"the questions of source {source} are others: {len(old)} before, {len(new)} after")
        differences = [b - a for (_, a), (_, b) in zip(old, new, strict=True)]
        difference = bootstrap(differences, [1.0] * len(differences), SEED)
        changes[source] = Change(mean_score([score for _, score in new], SEED), difference)
    return changes


def comparison_table(before: str, scores: Scores, changes: Mapping[str, Mapping[str, Change]]) -> Table:
    """A row for `before`, and two for each other evaluation: its scores, and the differences with what they tell."""
    made = Table("evaluation", title="scores, and differences by question, with 95 % intervals")
    for source, answered in scores.items():
        made.add_column(f"{source}\n{len(answered):,} questions", justify="right")
    made.add_row(
        before, *(with_interval(mean_score([score for _, score in answered], SEED)) for answered in scores.values())
    )
    for name, by_source in changes.items():
        made.add_section()
        made.add_row(name, *(with_interval(by_source[source].score) for source in scores))
        made.add_row("", *(_difference(by_source[source]) for source in scores))
    return made


def _difference(change: Change) -> str:
    mean = change.difference
    return f"{mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]\n{change.verdict}"
