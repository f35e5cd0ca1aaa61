"""Rules of `evaluate`: files that are there, amounts within their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from llava_train.config.mixture import READABLE, SourceConfig, file_sources, is_readable
from llava_train.config.rules.bounds import Bound, bounded
from llava_train.config.rules.files import source_problem
from llava_train.config.rules.generate import adapter_is_a_folder, has_a_start
from llava_train.config.schema import EvaluateConfig
from llava_train.shared.errors import ConfigError, Fault

BOUNDS: tuple[Bound, ...] = (
    ("limit", ">=", 0),
    ("batch_size", ">=", 1),
    ("max_new_tokens", ">=", 1),
    ("seed", ">=", 0),
    ("shown", ">=", 0),
    ("tolerance", ">=", 0),
    ("tolerance", "<", 1),
)


def evaluated_sources(config: EvaluateConfig) -> dict[str, SourceConfig]:
    """Raises ConfigError where the file is a mixture and not a sound one."""
    return file_sources(config.data.file, config.data.root or str(Path(config.data.file).parent))


def questions_are_there(config: EvaluateConfig) -> Iterator[Fault]:
    if not (config.data.file and is_readable(config.data.file, config.data.root)):
        problem = f"{config.data.file} is of no known kind" if config.data.file else "is empty"
        yield Fault("data.file", problem, f"name a file of held-out questions: {READABLE}")
        return
    try:
        sources = evaluated_sources(config)
    except ConfigError as error:
        yield from error.faults
        return
    for name, source in sources.items():
        problem, remedy = source_problem(source, own=True)
        if problem:
            yield Fault("data.file", f"source {name}: {problem}", remedy)


def amounts_are_in_range(config: EvaluateConfig) -> Iterator[Fault]:
    for bound in BOUNDS:
        more = "; a share of the reference: 0.05 is 5 %" if bound[0] == "tolerance" else ""
        yield from bounded("", config, bound, more)


def out_is_a_folder(config: EvaluateConfig) -> Iterator[Fault]:
    if Path(config.out).is_file():
        yield Fault("out", f"{config.out} is a file", "set out=DIR, a folder for answers, scores and page")


EVALUATE_RULES: tuple[Callable[..., Iterator[Fault]], ...] = (
    has_a_start,
    questions_are_there,
    adapter_is_a_folder,
    amounts_are_in_range,
    out_is_a_folder,
)
