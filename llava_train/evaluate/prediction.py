"""An answer with its score, and what the answers of a task come to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from llava_train.evaluate.questions import Question
from llava_train.evaluate.scoring import Reference, ScoreType, normalise, score
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import DataError

EVALUATION_FILE = "evaluation.json"
TOLERANCE = 0.05
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prediction:
    """One question with what was said to it."""

    question: str
    answer: str  # the reference
    predicted: str
    control: str  # predicted from another sample's media; "" where it was not asked
    images: list[str]
    videos: list[str]
    source: str = ""
    record: str = ""
    type: ScoreType = "exact"
    answers: list[str] = field(default_factory=list)  # all references; empty: `answer` alone
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return self.score_of(self.predicted)

    @property
    def is_right(self) -> bool:
        return self.score == 1.0

    def score_of(self, text: str, tolerance: float = TOLERANCE) -> float:
        return score(text, Reference(self.type, self.answers or [self.answer], self.choices), tolerance)


@dataclass(frozen=True)
class TaskResult:
    predictions: list[Prediction]

    @property
    def accuracy(self) -> float:
        return sum(p.score for p in self.predictions) / len(self.predictions)

    @property
    def control(self) -> float:
        return sum(p.score_of(p.control) for p in self.predictions) / len(self.predictions)

    @property
    def blind(self) -> float:
        """Accuracy of the best constant answer to each question."""
        answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for p in self.predictions:
            answers[p.question][normalise(p.answer)] += 1
        return sum(max(counts.values()) for counts in answers.values()) / len(self.predictions)


def dealt(items: Sequence[Item], ranks: Ranks, work: Callable[[Sequence[Item]], Iterable[Result]]) -> list[Result]:
    """The results of all items, in their order, on every rank; each does every n-th item.

    Raises the DataError of any rank on all of them.
    """
    results, error = list[Result](), None
    try:
        results = list(work(items[ranks.rank :: ranks.world_size]))
    except DataError as refused:
        error = refused
    gathered = ranks.gather((results, error))
    for _, raised in gathered:
        if raised:
            raise raised
    return [gathered[i % ranks.world_size][0][i // ranks.world_size] for i in range(len(items))]


def prediction(question: Question, predicted: str, control: str = "") -> Prediction:
    sample, reference = question.sample, question.reference
    return Prediction(
        question.text,
        sample.turns[-1].text,
        predicted,
        control,
        [str(path) for path in sample.images],
        [str(path) for path in sample.videos],
        sample.source,
        sample.record,
        reference.kind,
        list(reference.answers),
        dict(reference.choices),
    )
