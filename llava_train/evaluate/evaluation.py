"""`evaluate`: a file of questions to a checkpoint, in a folder that can be continued.

Enters: questions, an `Answerer`, ranks. Leaves, in the folder: `answers.jsonl`, what the model said, a line each as it
comes; and at the end, made anew by each call, `predictions.jsonl`, `scores.json` and `index.html`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from llava_train.config.rules.evaluate import evaluated_sources
from llava_train.config.schema import EvaluateConfig
from llava_train.config.typed import shown
from llava_train.evaluate.answerer import DECODE_TIMEOUT, MAX_PIXELS, Answerer
from llava_train.evaluate.page import Page
from llava_train.evaluate.prediction import Prediction, dealt, prediction
from llava_train.evaluate.questions import Question
from llava_train.evaluate.summary import AnswerWithLoss, Row, rows, summary_table
from llava_train.ranks.process_group import Ranks
from llava_train.shared.console import console
from llava_train.shared.errors import ConfigError, Fault
from llava_train.shared.json_files import read_json, to_json
from llava_train.shared.progress import tracked
from llava_train.shared.whole_files import whole_lines, write_json, write_whole
from llava_train.start_folder.find import stamps

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"
PREDICTIONS, SCORES, PAGE = "predictions.jsonl", "scores.json", "index.html"
BATCHES = 4  # that a rank answers between two writes


def evaluate(config: EvaluateConfig, questions: Sequence[Question], ranks: Ranks) -> None:
    """Asks what was not asked yet, and writes what came of all of it. Raises ConfigError, DataError."""
    asked = asked_of(config)
    folder = out_folder(config, asked)
    said: dict[int, AnswerWithLoss] = ranks.first(open_folder(folder, asked) if ranks.is_first else None)
    if len(said) < len(questions):
        answerer = Answerer(
            config.model.init, ranks.device, MAX_PIXELS, DECODE_TIMEOUT, config.dtype, config.adapter, config.load_in
        )
        said = ask(questions, folder, said, answerer, config, ranks)
    if ranks.is_first:
        report(config, folder, questions, [said[position] for position in range(len(questions))])


def report(config: EvaluateConfig, folder: Path, questions: Sequence[Question], said: Sequence[AnswerWithLoss]) -> None:
    """Scores the answers; prints the table, and writes predictions, scores and page."""
    predictions = [prediction(question, answer.predicted) for question, answer in zip(questions, said, strict=True)]
    scores = [p.score_of(p.predicted, config.tolerance) for p in predictions]
    figures = rows(predictions, scores, said, config.seed)
    write(folder, predictions, scores, said, figures)
    page = Page(MAX_PIXELS, DECODE_TIMEOUT)
    title = " + ".join(filter(None, (config.model.init, config.adapter))) + f" on {Path(config.data.file).name}"
    samples = [question.sample for question in questions]
    write_whole(folder / PAGE, page.render(title, figures, predictions, samples, scores, config.shown))
    page.close()
    out = console()
    out.print(summary_table(figures))
    for what, name in (("page", PAGE), ("predictions", PREDICTIONS), ("scores", SCORES)):
        out.print(f"{what:<12} {folder / name}", highlight=False)


def asked_of(config: EvaluateConfig) -> dict[str, Any]:
    """What the answers depend on, by key: another value belongs in another folder."""
    weights = {name: stamps(folder) for name, folder in (("model", config.model.init), ("adapter", config.adapter))}
    sources = {name: [_digest(source.path), *astuple(source)] for name, source in evaluated_sources(config).items()}
    # The scores' own settings are not among these: they are worked out anew by each call.
    keys = ("adapter", "load_in", "dtype", "limit", "max_new_tokens", "seed")
    settings = {key: getattr(config, key) for key in keys}
    return {"model.init": config.model.init, "weights": weights, "data.file": sources, **settings}


def out_folder(config: EvaluateConfig, asked: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return Path(config.out or f"evaluations/{Path(config.data.file).stem}-{digest}")


def open_folder(folder: Path, asked: dict[str, Any]) -> dict[int, AnswerWithLoss]:
    """The answers that are there, by position. Raises ConfigError where they are to something else."""
    folder.mkdir(parents=True, exist_ok=True)
    noted, answers = folder / SETTINGS, folder / ANSWERS
    before = read_json(noted) if noted.is_file() else asked
    if changed := [key for key in asked if before.get(key) != asked[key]]:
        remedy = "set another out=DIR, or leave it out for a folder of its own"
        began = f"; {folder} was begun with "
        raise ConfigError([Fault(k, shown(asked[k]) + began + shown(before.get(k)), remedy) for k in changed])
    write_json(noted, asked)
    lines = whole_lines(answers)  # the last may have been cut off
    write_whole(answers, b"".join(lines).decode())
    whole = map(json.loads, lines)
    return {
        line["question"]: AnswerWithLoss(line["predicted"], _number(line["loss"]), line["tokens"]) for line in whole
    }


def ask(
    questions: Sequence[Question],
    folder: Path,
    said: dict[int, AnswerWithLoss],
    answerer: Answerer,
    config: EvaluateConfig,
    ranks: Ranks,
) -> dict[int, AnswerWithLoss]:
    """Answers of all questions; those not in `said` are asked, and appended to the folder block by block.

    The blocks are the same on every rank. Raises DataError.
    """
    missing = [position for position in range(len(questions)) if position not in said]
    size = config.batch_size * ranks.world_size * BATCHES

    def answered() -> Iterator[int]:
        for start in range(0, len(missing), size):
            block = missing[start : start + size]
            samples = [questions[position].sample for position in block]
            texts = dealt(samples, ranks, lambda mine: answerer.answers(mine, config.batch_size, config.max_new_tokens))
            losses = dealt(samples, ranks, lambda mine: answerer.losses(mine, config.batch_size))
            new = {p: AnswerWithLoss(text, *loss) for p, text, loss in zip(block, texts, losses, strict=True)}
            said.update(new)
            if ranks.is_first:
                with (folder / ANSWERS).open("a", encoding="utf-8") as file:
                    file.writelines(
                        to_json({"question": p, **asdict(s)}, ensure_ascii=False) + "\n" for p, s in new.items()
                    )
            yield from block

    steps = answered()
    for _ in tracked(steps, len(missing), "answered") if ranks.is_first else steps:
        pass
    return said


def write(
    folder: Path,
    predictions: Sequence[Prediction],
    scores: Sequence[float],
    said: Sequence[AnswerWithLoss],
    rows: Sequence[Row],
) -> None:
    """`predictions.jsonl` and `scores.json`."""
    lines = []
    for p, score, answer in zip(predictions, scores, said, strict=True):
        content = {key: value for key, value in asdict(p).items() if key != "control"}
        lines.append(
            to_json({**content, "score": score, "loss": answer.loss, "tokens": answer.tokens}, ensure_ascii=False)
        )
    write_whole(folder / PREDICTIONS, "\n".join(lines) + "\n")
    write_json(folder / SCORES, [asdict(row) for row in rows])


def _number(value: float | None) -> float:
    """As it was before it was written as JSON, which has no NaN."""
    return math.nan if value is None else value


def _digest(place: Path) -> str:
    """Of a file's content, of a folder's names."""
    content = "\n".join(map(str, sorted(place.rglob("*")))).encode() if place.is_dir() else place.read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]
