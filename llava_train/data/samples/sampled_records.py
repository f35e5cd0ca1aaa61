"""The records of a stage: its sources, those on disk, and what the mixture takes of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from llava_train.config.mixture import SourceConfig, stage_sources
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import DataConfig, StageConfig
from llava_train.records.readers.open import open_source, record_of


def present_sources(data: DataConfig, stage: StageConfig) -> dict[str, SourceConfig]:
    """Sources of a stage, without those that are not on disk where `data.allow_missing_sources`. Raises ConfigError."""
    sources = stage_sources(data, stage)
    if not data.allow_missing_sources:
        return sources
    return {name: source for name, source in sources.items() if source.path.exists()}


def unread_of_sources(stages: Iterable[dict[str, SourceConfig]]) -> list[str]:
    """What is not read of the sources of stages, in words; each source once. Raises DataError."""
    told = (open_source(source.file, name).passed_over() for of in stages for name, source in of.items())
    return list(dict.fromkeys(filter(None, told)))


def sampled_records(name: str, source: SourceConfig, seed: int) -> Iterator[tuple[int, Any]]:
    """(position, record) of what the mixture takes of one source, each once, in the order of its file.

    The file is read as far as records are taken, and all through before where their number decides. Raises DataError.
    """
    records, sampling = open_source(source.file, name), parse_sampling(source.sampling)
    if sampling.kind == "all" or (sampling.kind == "first" and sampling.percent is None):
        stop, wanted = sampling.count, None
    else:
        chosen = sampling.select(records.count(), (seed, name))
        stop, wanted = chosen[-1] + 1 if chosen else 0, set(chosen)
    for position, raw in islice(enumerate(records), stop):
        if wanted is None or position in wanted:
            yield position, record_of(raw)
