"""Rules of `compare`: folders that hold an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from llava_train.config.schema import CompareConfig
from llava_train.shared.errors import Fault

PREDICTIONS = "predictions.jsonl"  # in a folder of `evaluate`: a question a line, with its score


def evaluations_are_there(config: CompareConfig) -> Iterator[Fault]:
    if not config.after:
        yield Fault("after", "is empty", "set after=[DIR,...], the evaluations to compare with `before`")
    for key, folder in [("before", config.before), *(("after", folder) for folder in config.after)]:
        if not (Path(folder) / PREDICTIONS).is_file():
            yield Fault(key, f"{folder} holds no {PREDICTIONS}", "name a folder that `evaluate` wrote")


COMPARE_RULES: tuple[Callable[..., Iterator[Fault]], ...] = (evaluations_are_there,)
