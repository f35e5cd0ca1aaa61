"""The samples of a stage: its sources' records, sampled and in order.

Enters: the sources that `config.mixture` resolves. Leaves: `Sample`s, and `DataError`s in place of bad records.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava_train.config.errors import DataError
from llava_train.config.mixture import SourceConfig, stage_sources
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import DataConfig, StageConfig
from llava_train.data.formats import read_records, record_id, to_sample
from llava_train.data.sample import Sample


def present_sources(data: DataConfig, stage: StageConfig) -> dict[str, SourceConfig]:
    """Sources of a stage, without those that are not on disk where `data.allow_missing_sources`. Raises ConfigError."""
    sources = stage_sources(data, stage)
    if not data.allow_missing_sources:
        return sources
    return {name: source for name, source in sources.items() if Path(source.file).is_file()}


def source_samples(name: str, source: SourceConfig, seed: int) -> Iterator[tuple[str, Sample | DataError]]:
    """The sampled records of one source with their ids, each once. Raises DataError where its file cannot be read."""
    records = read_records(Path(source.file), name)
    for position in parse_sampling(source.sampling).select(len(records), (seed, name)):
        try:
            sample = to_sample(records[position], name, position, Path(source.media_root))
            yield sample.id, sample
        except DataError as error:
            yield record_id(records[position], position), error
