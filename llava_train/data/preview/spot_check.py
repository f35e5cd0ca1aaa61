"""`check`'s look at records before a run reads them all: their form, and the headers of their media.

Enters: the sources of a run. Leaves: faults, and in words what was looked at and what was not. Nothing is tokenised or
decoded, and no heavy library is loaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import Any

from llava_train.config.mixture import SourceConfig, file_sources
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import Config, VideoConfig
from llava_train.data.media.sample_media import make_limits, make_video_reader, media_sizes
from llava_train.data.media.video import VideoReader
from llava_train.data.samples.parse import media_roots, to_answered
from llava_train.data.samples.sampled_records import present_sources, sampled_records
from llava_train.records.file_formats import COUNT_LIMIT
from llava_train.records.readers.open import open_source, record_of
from llava_train.shared.errors import DataError, Fault, counted

FIRST, DRAWN = 100, 100  # records of a source
MEDIA, SECONDS = 2000, 60.0  # of all sources
NAMED = 3  # records that a fault names, sources that a line names


@dataclass
class Look:
    """What was found. `passed`: by source, what was not looked at."""

    faults: list[Fault] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # under data.on_error=skip
    passed: dict[str, str] = field(default_factory=dict)
    records: int = 0
    media: int = 0

    def __str__(self) -> str:
        lines = [f"looked at {self.records:,} records and the headers of {self.media:,} images and videos"]
        lines += self.left_out
        if self.passed:
            named = [f"{name} ({what})" for name, what in islice(self.passed.items(), NAMED)]
            more = [f"and {len(self.passed) - NAMED} more sources"] if len(self.passed) > NAMED else []
            lines.append(f"not looked at: {', '.join([*named, *more])}")
        return "\n".join(lines)


def look_at_records(config: Config) -> Look:
    """Of each source the first records and some of the rest, as long as media and time last, in equal shares."""
    found, sources = Look(), _sources(config)
    videos = make_video_reader(config.data, VideoConfig(1.0, 1))
    began = monotonic()
    try:
        for number, (key, name, source) in enumerate(sources):
            share = 1 / (len(sources) - number)
            left = SECONDS - (monotonic() - began)
            budget = _Budget(int((MEDIA - found.media) * share), monotonic() + left * share)
            _look_at(config, key, name, source, budget, videos, found)
    finally:
        videos.close()
    return found


def _sources(config: Config) -> list[tuple[str, str, SourceConfig]]:
    """(key of the configuration, name, source) of each that is on disk, once however many stages read it."""
    sources: dict[tuple[str, str, str], tuple[str, str, SourceConfig]] = {}
    for stage_name, stage in config.stages.items():
        key = "data.file" if config.data.file else f"stages.{stage_name}.mixture"
        for name, source in present_sources(config.data, stage).items():
            sources.setdefault((source.file, source.media_root, source.sampling), (key, name, source))
    if config.evaluation.file:
        for name, source in file_sources(config.evaluation.file, config.data.root).items():
            sources.setdefault((source.file, source.media_root, source.sampling), ("evaluation.file", name, source))
    return list(sources.values())


@dataclass
class _Budget:
    """What one source may take: images and videos, and the moment after which no record is begun."""

    media: int
    deadline: float


def _look_at(
    config: Config, key: str, name: str, source: SourceConfig, budget: _Budget, videos: VideoReader, found: Look
) -> None:
    seen = _Seen(f"source {name}")
    records = _Records(name, source, config.run.seed)
    try:
        for where, record in records:
            if monotonic() > budget.deadline:
                records.passed = f"all but {seen.records} records, for want of time"
                break
            seen.records += 1
            position = int(where) if where.isdigit() else 0
            try:
                sample = to_answered(record, name, position, media_roots(config.data, source))
                if len(sample.media()) > budget.media:
                    seen.passed += len(sample.media())
                    continue
                budget.media -= len(sample.media())
                found.media += len(sample.media())
                if refusal := make_limits(config.data).refusal(media_sizes(sample, videos)):
                    raise sample.error(*refusal)
            except DataError as error:
                seen.refuse(error.record if where.isdigit() else where, error)
    except DataError as error:  # of the source as a whole
        found.faults.append(Fault(key, f"source {name}: {error.detail}", "mend the file"))
        return
    found.records += seen.records
    if passed := [records.passed] * bool(records.passed) + [f"{seen.passed} images and videos"] * bool(seen.passed):
        found.passed[name] = " and ".join(passed)
    if not seen.records and not records.passed:
        found.faults.append(Fault(key, f"source {name}: {source.file} holds no records", "give it some"))
    elif len(seen.refused) == seen.records or (seen.refused and config.data.on_error == "error"):
        is_some = len(seen.refused) < seen.records
        remedy = "mend them" + ", or set data.on_error=skip to leave them out" * is_some
        found.faults.append(Fault(key, str(seen), f"{remedy}; docs/data.md says what a record holds"))
    elif seen.refused:
        found.left_out.append(f"left out: {seen}")


@dataclass
class _Seen:
    """Of one source. `refused`: where, and why. `passed`: media that were too many."""

    name: str
    records: int = 0
    passed: int = 0
    refused: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def refuse(self, where: str, error: DataError) -> None:
        self.reasons.append(error.reason)
        self.refused.append(f"record {where}: {error.reason}" + (f" ({error.detail})" if error.detail else ""))

    def __str__(self) -> str:
        told = f"{len(self.refused)} of {self.records} records looked at cannot be used: {counted(self.reasons)}"
        return "\n       ".join([f"{self.name}: {told}", *self.refused[:NAMED]])


class _Records:
    """(where it stands, record) of those of one source that are looked at. `passed`: in words those that are not, once
    these have been gone through."""

    def __init__(self, name: str, source: SourceConfig, seed: int):
        self._name, self._source, self._seed = name, source, seed
        self.passed = ""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._of_all() if parse_sampling(self._source.sampling).kind == "all" else self._of_sampled()

    def _of_all(self) -> Iterator[tuple[str, Any]]:
        records, count = open_source(self._source.file, self._name), 0
        for count, raw in enumerate(islice(records, FIRST), 1):
            yield str(count - 1), record_of(raw)
        if count < FIRST:
            return
        drawn = records.drawn(FIRST, DRAWN, random.Random(f"{self._seed} {self._name}"))
        if drawn is None:
            self.passed = f"all behind its first {FIRST} records, to which its format does not lead"
            return
        for count, (where, raw) in enumerate(drawn, 1):
            self.passed = f"all but its first {FIRST} records and {count} of the others" if count == DRAWN else ""
            yield where, record_of(raw)

    def _of_sampled(self) -> Iterator[tuple[str, Any]]:
        path, sampling = self._source.path, parse_sampling(self._source.sampling)
        counts = sampling.kind != "first" or sampling.percent is not None
        if counts and path.is_file() and path.suffix != ".parquet" and path.stat().st_size > COUNT_LIMIT:
            self.passed = f"all of it, of which sampling {self._source.sampling} takes the whole file to count"
            return
        records = sampled_records(self._name, self._source, self._seed)
        for position, record in islice(records, FIRST):
            yield str(position), record
        if next(records, None):
            self.passed = f"all behind the first {FIRST} records that sampling {self._source.sampling} takes"
