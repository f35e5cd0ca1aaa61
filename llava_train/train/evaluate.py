"""Held-out questions to the exported checkpoint of each stage: accuracy beside a blind baseline and a control.

Blind: the best constant answer per question, counted on the held-out answers themselves, so no model without eyes does
better. Control: the same model, each question asked about another sample's images or video.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress

from llava_train.config.errors import ConfigError, DataError, Fault
from llava_train.config.schema import Config, TaskConfig
from llava_train.data.formats import read_records, to_sample
from llava_train.data.sample import Sample
from llava_train.train.answer import Answerer, with_media_of
from llava_train.train.checkpoint import write_whole
from llava_train.train.distributed import Ranks
from llava_train.train.metrics import console
from llava_train.train.stages import Stage, all_stages

FILE = "evaluation.json"


@dataclass(frozen=True)
class Prediction:
    question: str
    answer: str  # the reference
    predicted: str
    control: str  # predicted from another sample's media
    images: list[str]
    videos: list[str]

    @property
    def is_right(self) -> bool:
        return normalise(self.predicted) == normalise(self.answer)

    @property
    def control_is_right(self) -> bool:
        return normalise(self.control) == normalise(self.answer)


@dataclass(frozen=True)
class TaskResult:
    predictions: list[Prediction]

    @property
    def accuracy(self) -> float:
        return sum(p.is_right for p in self.predictions) / len(self.predictions)

    @property
    def control(self) -> float:
        return sum(p.control_is_right for p in self.predictions) / len(self.predictions)

    @property
    def blind(self) -> float:
        """Accuracy of the best constant answer to each question."""
        answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for p in self.predictions:
            answers[p.question][normalise(p.answer)] += 1
        return sum(max(counts.values()) for counts in answers.values()) / len(self.predictions)


def normalise(text: str) -> str:
    """Answers are compared without case, surrounding space and a final full stop."""
    return text.strip().lower().removesuffix(".").strip()


def evaluate_stages(config: Config, ranks: Ranks) -> dict[str, dict[str, TaskResult]]:
    """stage -> task -> result, of every stage; what an earlier call wrote is read, not asked again.

    Questions are dealt out over the ranks. Raises DataError, ConfigError where a task's file has no samples.
    """
    if not config.evaluation.tasks:
        return {}
    return {stage.name: _evaluate_stage(config, stage, ranks) for stage in all_stages(config)}


def _evaluate_stage(config: Config, stage: Stage, ranks: Ranks) -> dict[str, TaskResult]:
    path = stage.folder / FILE
    evaluation = config.evaluation
    key = {
        "tasks": {name: asdict(task) for name, task in evaluation.tasks.items()},
        "tokens": evaluation.max_new_tokens,
    }
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if saved.get("key") != key:
        answerer = Answerer(str(stage.export), ranks.device, config.data.max_pixels, config.data.decode_timeout)
        results = {
            name: _run_task(config, f"{stage.label}: {name}", _read_task(config, name, task), answerer, ranks)
            for name, task in evaluation.tasks.items()
        }
        saved = {"key": key, "results": {name: [asdict(p) for p in result] for name, result in results.items()}}
        if ranks.is_first:
            write_whole(path, json.dumps(saved, indent=1, ensure_ascii=False))
    return {name: TaskResult([Prediction(**p) for p in result]) for name, result in saved["results"].items()}


def _read_task(config: Config, name: str, task: TaskConfig) -> list[Sample]:
    root = Path(config.data.root)
    records = read_records(root / task.file, name)
    samples = [to_sample(record, name, i, root) for i, record in enumerate(records[: task.limit or None])]
    if not samples:
        raise ConfigError([Fault(f"evaluation.tasks.{name}", f"{task.file} holds no samples", "give it records")])
    for sample in samples:
        if sample.turns[-1].role != "gpt":
            raise DataError(name, sample.record, "no reference answer", "the last turn must be the answer")
    return samples


def _run_task(config: Config, label: str, samples: list[Sample], answerer: Answerer, ranks: Ranks) -> list[Prediction]:
    swapped = [with_media_of(s, o) for s, o in zip(samples, _others(samples, config.run.seed), strict=True)]
    mine = slice(ranks.rank, None, ranks.world_size)
    asked = samples[mine] + swapped[mine]
    evaluation = config.evaluation
    with Progress(console=console(ranks.is_first), transient=True) as progress:
        answers = answerer.answers(asked, evaluation.batch_size, evaluation.max_new_tokens)
        texts = list(progress.track(answers, total=len(asked), description=label))
    half = len(asked) // 2
    dealt = ranks.gather(list(zip(texts[:half], texts[half:], strict=True)))
    pairs = [dealt[i % ranks.world_size][i // ranks.world_size] for i in range(len(samples))]
    return [_prediction(sample, *pair) for sample, pair in zip(samples, pairs, strict=True)]


def _prediction(sample: Sample, predicted: str, control: str) -> Prediction:
    question = "\n".join(turn.text for turn in sample.turns[:-1])
    images, videos = [str(path) for path in sample.images], [str(path) for path in sample.videos]
    return Prediction(question, sample.turns[-1].text, predicted, control, images, videos)


def _others(samples: list[Sample], seed: int) -> list[Sample]:
    """For each sample another one with as many images and videos; itself where it is the only one of its kind."""
    alike: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        alike[len(sample.images), len(sample.videos)].append(i)
    others = list(samples)
    for indices in alike.values():
        random.Random(seed).shuffle(indices)
        for i, j in zip(indices, indices[1:] + indices[:1], strict=True):
            others[i] = samples[j]
    return others
