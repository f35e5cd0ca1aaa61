"""Held-out questions to the exported checkpoint of each stage: accuracy beside a blind baseline and a control.

Blind: the best constant answer per question, counted on the held-out answers themselves, so no model without eyes does
better. Control: the same model, each question asked about another sample's images or video.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress

from llava_train.config.mixture import SourceConfig
from llava_train.config.schema import Config, TaskConfig
from llava_train.data.samples.sample import Sample
from llava_train.evaluate.answerer import Answerer, with_media_of
from llava_train.evaluate.prediction import EVALUATION_FILE, Prediction, TaskResult, dealt, prediction
from llava_train.evaluate.questions import Question, read_questions
from llava_train.ranks.process_group import Ranks
from llava_train.shared.console import console
from llava_train.shared.errors import RunError
from llava_train.shared.json_files import read_json
from llava_train.shared.whole_files import write_json
from llava_train.train.run.stages import Stage, all_stages


def evaluate_stages(config: Config, ranks: Ranks) -> dict[str, dict[str, TaskResult]]:
    """stage -> task -> result, of every stage; what an earlier call wrote is read, not asked again.

    Questions are dealt out over the ranks. Raises DataError, ConfigError where a task's file has no samples.
    """
    if not config.evaluation.tasks:
        return {}
    return {stage.name: _evaluate_stage(config, stage, ranks) for stage in all_stages(config)}


def _evaluate_stage(config: Config, stage: Stage, ranks: Ranks) -> dict[str, TaskResult]:
    path = stage.folder / EVALUATION_FILE
    evaluation = config.evaluation
    key = {
        "tasks": {name: asdict(task) for name, task in evaluation.tasks.items()},
        "tokens": evaluation.max_new_tokens,
    }
    saved = read_json(path) if path.exists() else {}
    if saved.get("key") != key:
        if not stage.export.is_dir():
            told = f"stage {stage.label} has held-out questions to answer, and {stage.export} is gone"
            raise RunError(f"{told}\n    -> {stage.remedy}")
        answerer = Answerer(str(stage.export), ranks.device, config.data.max_pixels, config.data.decode_timeout)
        results = {
            name: _run_task(config, f"{stage.label}: {name}", _read_task(config, name, task), answerer, ranks)
            for name, task in evaluation.tasks.items()
        }
        saved = {"key": key, "results": {name: [asdict(p) for p in result] for name, result in results.items()}}
        if ranks.is_first:
            write_json(path, saved)
    return {name: TaskResult([Prediction(**p) for p in result]) for name, result in saved["results"].items()}


def _read_task(config: Config, name: str, task: TaskConfig) -> list[Question]:
    root = config.data.root
    source = SourceConfig(file=str(Path(root, task.file)), media_root=root)
    return read_questions({name: source}, task.limit, config.run.seed)


def _run_task(
    config: Config, label: str, questions: list[Question], answerer: Answerer, ranks: Ranks
) -> list[Prediction]:
    samples = [question.sample for question in questions]
    others = _others(samples, config.run.seed)
    asked = samples + [with_media_of(sample, other) for sample, other in zip(samples, others, strict=True)]
    evaluation = config.evaluation

    def answers(mine: Sequence[Sample]) -> Iterable[str]:
        with Progress(console=console(ranks.is_first), transient=True) as progress:
            texts = answerer.answers(mine, evaluation.batch_size, evaluation.max_new_tokens)
            yield from progress.track(texts, total=len(mine), description=label)

    said = dealt(asked, ranks, answers)
    texts, controls = said[: len(samples)], said[len(samples) :]
    return [prediction(q, text, control) for q, text, control in zip(questions, texts, controls, strict=True)]


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
