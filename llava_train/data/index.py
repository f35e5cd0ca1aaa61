"""The index of a stage's samples: sizes and refusals, found at start from text and media headers, no pixel decoded.

Enters: the samples of a mixture. Leaves: a folder in `cache_dir`, written whole or absent and reused while nothing that
it depends on changes: `sizes.npz`, `samples.jsonl` (one sample with its layouts per line, read back by position) and
`refused.json`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.progress import Progress

from llava_train.batch.packed import VisualLayout
from llava_train.config.errors import DataError
from llava_train.config.mixture import SourceConfig
from llava_train.data.encode import Encoder
from llava_train.data.formats import to_sample
from llava_train.data.media import MediaReader
from llava_train.data.mixture import sampled_records
from llava_train.data.processes import follow_parent, shielded
from llava_train.data.sample import Sample, Turn

FORMAT = 2  # of the folder; a change of form makes old indexes unread
CHUNK = 256  # samples measured at a time
PARALLEL_ABOVE = 2000  # samples; below, starting processes costs more than it saves
Record = tuple[int, Any]  # position in its source, as read
NAMED = 5  # refused samples that an error names


@dataclass(frozen=True)
class Sizes:
    """Of each sample: tokens with visual ones, tiles, supervised ones, draws in an epoch, source, start of its line."""

    lengths: np.ndarray  # int32 [samples], like all but `offsets`
    tiles: np.ndarray
    supervised: np.ndarray
    repeats: np.ndarray
    sources: np.ndarray  # positions in the mixture
    offsets: np.ndarray  # int64 [samples + 1], bytes into samples.jsonl


class Index:
    """An index on disk. Picklable; each process opens the lines for itself."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lines: BinaryIO | None = None
        with np.load(folder / "sizes.npz") as arrays:
            self.sizes = Sizes(**arrays)
        content = json.loads((folder / "refused.json").read_text(encoding="utf-8"))
        self.refused = [DataError(*entry["error"]) for entry in content["refused"]]
        self._refused_samples = [entry["sample"] for entry in content["refused"] if entry["sample"]]
        self._sources: list[str] = content["sources"]

    def num_by_source(self, positions: np.ndarray) -> dict[str, int]:
        """How many of the positions are of each source."""
        counts = np.bincount(self.sizes.sources[positions], minlength=len(self._sources))
        return dict(zip(self._sources, counts.tolist(), strict=True))

    def sample(self, position: int) -> tuple[Sample, list[VisualLayout]]:
        """The sample at a position, with its layouts in reading order."""
        if self._lines is None:
            self._lines = (self._folder / "samples.jsonl").open("rb")
        start, stop = self.sizes.offsets[position : position + 2]
        line = os.pread(self._lines.fileno(), int(stop - start), int(start))
        content = json.loads(line)
        return _sample(content["sample"]), [
            VisualLayout(kind, height, width, (rows, columns), *counts)
            for kind, height, width, (rows, columns), *counts in content["visuals"]
        ]

    def still_refuses(self, measure: Callable[[Sample], Any]) -> bool:
        """Whether its refused samples are still bad: a missing file may have come since."""
        for content in self._refused_samples:
            try:
                measure(_sample(content))
            except DataError:
                continue
            return False
        return True

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_lines": None}


def load_index(
    sources: dict[str, SourceConfig],
    encoder: Encoder,
    media: MediaReader,
    seed: int,
    settings: Any,
    num_workers: int,
    cache_dir: Path,
) -> Index:
    """The index of the sources, from `cache_dir` or made there. `settings`: what else its content depends on, as JSON.

    Processes that ask at the same time make it once. Raises DataError where a source's file cannot be read.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    folder = cache_dir / f"index-{_fingerprint(sources, seed, settings)}"
    measure = _Measure(encoder, media)
    with _locked(folder.with_suffix(".lock")):
        if folder.exists():
            index = Index(folder)
            if index.still_refuses(measure):
                return index
            shutil.rmtree(folder)
        beside = folder.with_suffix(".part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        _write(beside, sources, measure, seed, num_workers)
        beside.rename(folder)
    return Index(folder)


def refusal(
    refused: list[DataError], remedy: str = "mend them, or set data.on_error=skip to leave them out"
) -> DataError:
    """One error for all refused samples: the first, how many of each kind, and a few more by name."""
    first, others = refused[0], refused[1:NAMED]
    counts = Counter(error.reason for error in refused)
    lines = [first.detail] if first.detail else []
    lines += [
        f"{len(refused)} such samples: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    ]
    lines += [f"also {error.source}, record {error.record}: {error.reason}" for error in others]
    lines += [remedy]
    return DataError(first.source, first.record, first.reason, "\n    ".join(lines))


@dataclass
class _Row:
    line: bytes
    length: int
    tiles: int
    supervised: int


class _Measure:
    """One sample to one row of the index. Raises DataError."""

    def __init__(self, encoder: Encoder, media: MediaReader):
        self._encoder, self._media = encoder, media

    def __call__(self, sample: Sample) -> _Row:
        encoded = self._encoder.encode(sample, self._media.layouts(sample))
        visuals = [(v.kind, v.height, v.width, v.grid, v.num_tiles, v.num_tokens) for v in encoded.visuals]
        line = json.dumps({"sample": _plain(sample), "visuals": visuals}, ensure_ascii=False) + "\n"
        return _Row(line.encode(), len(encoded.input_ids), encoded.num_tiles, encoded.num_supervised)


@dataclass
class _Refused:
    error: DataError
    sample: dict[str, Any] | None  # None where the record is none


@dataclass
class _OfSource:
    """One record of a source to one row, or to why it is refused."""

    name: str
    media_root: Path
    measure: _Measure

    def __call__(self, record: Record) -> _Row | _Refused:
        sample = None
        try:
            sample = to_sample(record[1], self.name, record[0], self.media_root)
            return self.measure(sample)
        except DataError as error:
            return _Refused(error, _plain(sample) if sample else None)


def _write(folder: Path, sources: dict[str, SourceConfig], measure: _Measure, seed: int, num_workers: int) -> None:
    columns: dict[str, list[int]] = {name: [] for name in ("lengths", "tiles", "supervised", "repeats", "sources")}
    ends, refused = [0], []
    with (folder / "samples.jsonl").open("wb") as lines:
        for number, (name, source) in enumerate(sources.items()):
            records = sampled_records(name, source, seed)
            for row in _measured(records, _OfSource(name, Path(source.media_root), measure), num_workers):
                if isinstance(row, _Refused):
                    refused.append({"error": row.error.__reduce__()[1], "sample": row.sample})
                    continue
                lines.write(row.line)
                ends.append(ends[-1] + len(row.line))
                values = (row.length, row.tiles, row.supervised, source.repeat, number)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    arrays = {name: np.array(values, dtype=np.int32) for name, values in columns.items()}
    arrays["offsets"] = np.array(ends, dtype=np.int64)
    np.savez(folder / "sizes.npz", **arrays)  # type: ignore[arg-type]  # its stub takes all keywords for flags
    content = json.dumps({"refused": refused, "sources": list(sources)}, ensure_ascii=False)
    (folder / "refused.json").write_text(content, encoding="utf-8")


def _measured(records: list[Record], measure: _OfSource, num_workers: int) -> Iterator[_Row | _Refused]:
    """A row or a refusal per record, in order; by processes where there are many."""
    feed = iter(records)
    chunks = iter(lambda: list(islice(feed, CHUNK)), [])
    large = len(records) > PARALLEL_ABOVE
    with Progress(disable=not large, transient=True) as progress:
        task = progress.add_task(f"indexing {measure.name}", total=len(records))
        if large and num_workers > 1:
            with shielded():
                pool = multiprocessing.get_context("fork").Pool(num_workers, _start_process, (measure,))
            with pool:
                for rows in pool.imap(_measure_in_process, chunks):
                    progress.advance(task, len(rows))
                    yield from rows
        else:
            for chunk in chunks:
                yield from map(measure, chunk)
                progress.advance(task, len(chunk))


_process_measure: _OfSource  # of an index process, set when it starts


def _start_process(measure: _OfSource) -> None:
    global _process_measure
    _process_measure = measure
    follow_parent()


def _measure_in_process(records: list[Record]) -> list[_Row | _Refused]:
    return [_process_measure(record) for record in records]


def _plain(sample: Sample) -> dict[str, Any]:
    media = {"images": [str(path) for path in sample.images], "videos": [str(path) for path in sample.videos]}
    return {"id": sample.id, "source": sample.source, "turns": list(sample.turns), **media, "record": sample.record}


def _sample(content: dict[str, Any]) -> Sample:
    media = {key: [Path(path) for path in content[key]] for key in ("images", "videos")}
    return Sample(**{**content, **media, "turns": [Turn(*turn) for turn in content["turns"]]})


def _fingerprint(sources: dict[str, SourceConfig], seed: int, settings: Any) -> str:
    files = {}
    for name, source in sources.items():
        path = source.path
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in inside if file.is_file()]
        files[name] = [asdict(source), os.path.abspath(source.file), stamps]
    content = json.dumps([FORMAT, files, seed, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of a process that dies."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
