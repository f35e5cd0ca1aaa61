"""The records of a stage: its sources, those on disk, and what the mixture takes of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_train.config.mixture import SourceConfig, stage_sources
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import DataConfig, StageConfig
from llava_train.data.formats import read_records


def present_sources(data: DataConfig, stage: StageConfig) -> dict[str, SourceConfig]:
    """Sources of a stage, without those that are not on disk where `data.allow_missing_sources`. Raises ConfigError."""
    sources = stage_sources(data, stage)
    if not data.allow_missing_sources:
        return sources
    return {name: source for name, source in sources.items() if source.path.exists()}


def sampled_records(name: str, source: SourceConfig, seed: int) -> list[tuple[int, Any]]:
    """(position, record as read) of what the mixture takes of one source, each once. Raises DataError for its file."""
    records = read_records(Path(source.file), name)
    return [(i, records[i]) for i in parse_sampling(source.sampling).select(len(records), (seed, name))]
