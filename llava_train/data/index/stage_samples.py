"""A stage's samples: what its mixture takes of the indexes of its sources, with lengths and tiles by its geometry.

Enters: the indexes. Leaves: `StageSamples`, computed in closed form on whole columns, so that a stage of millions
starts at once, whatever the limits and the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llava_train.config.mixture import SourceConfig
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import DataConfig
from llava_train.data.index.make_index import Reading
from llava_train.data.index.same_media import find_pictures
from llava_train.data.index.source_index import MEDIUM_KINDS, REFUSED, Index
from llava_train.data.media.sample_media import MediaReader, MediumSize
from llava_train.data.packing.packs import SampleSizes
from llava_train.data.samples.encode import TOO_LONG
from llava_train.data.samples.held_out import same_content
from llava_train.data.samples.parse import record_name
from llava_train.data.samples.sample import Sample
from llava_train.data.samples.sample_notes import NAMED, NOTES, note_line
from llava_train.family.base import MediumShapes, VisualLayout
from llava_train.records.readers.open import record_of
from llava_train.shared.errors import DataError, counted

BLOCK = 2**18  # records whose media are looked at together, so that memory does not grow with these


@dataclass(frozen=True)
class IndexedSource:
    """One source of a mixture, with its index."""

    name: str
    config: SourceConfig
    index: Index
    reading: Reading


class StageSamples:
    """The sound samples of a stage, by position. Picklable.

    sizes: int32. refused: what the mixture takes and is left out; faults: those that `data.on_error` decides on.
    """

    def __init__(self, sources: list[IndexedSource], data: DataConfig, media: MediaReader, max_length: int, seed: int):
        self._sources = sources
        self._media = media
        self.refused: list[DataError] = []
        parts = [_view(source, data, media, max_length, seed, self.refused) for source in sources]
        self._source_of = np.repeat(np.arange(len(parts), dtype=np.int16), [len(part["records"]) for part in parts])
        joined = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
        self._records, self._notes = joined.pop("records"), joined.pop("notes")
        self.sizes = SampleSizes(**joined)
        skips = data.too_long == "skip"
        self.faults = [error for error in self.refused if not (skips and error.reason == TOO_LONG)]

    def __len__(self) -> int:
        return len(self.sizes.lengths)

    def num_by_source(self, positions: np.ndarray) -> dict[str, int]:
        """How many of the positions are of each source."""
        counts = np.bincount(self._source_of[positions], minlength=len(self._sources))
        return dict(zip([source.name for source in self._sources], counts.tolist(), strict=True))

    def content(self, num_workers: int) -> np.ndarray:
        """uint64 [samples], equal for samples that share media, or of the same text where there are none."""
        find_pictures([(source.name, source.index, source.reading) for source in self._sources], num_workers)
        content = np.empty(len(self), dtype=np.uint64)
        for number, of_index in enumerate(same_content([source.index.pictures() for source in self._sources])):
            of_source = self._source_of == number
            content[of_source] = of_index[self._records[of_source]]
        return content

    def notes(self, positions: np.ndarray) -> list[str]:
        """What is said of the samples at these positions before they are trained on."""
        by_note = [(note, np.unique(positions[self._notes[positions] == note])) for note in range(1, len(NOTES))]
        return [note_line(note, len(of), map(self.name_of, of[:NAMED])) for note, of in by_note if len(of)]

    def name_of(self, position: int) -> str:
        """Source and record."""
        source, record = self._sources[self._source_of[position]], int(self._records[position])
        return f"{source.name}, record {record_name(record_of(source.index.record(record)), record)}"

    def draws(self, positions: np.ndarray) -> np.ndarray:
        """The positions as an epoch draws them, each as often as its source says. int64."""
        repeats = np.array([source.config.repeat for source in self._sources])
        return np.repeat(positions, repeats[self._source_of[positions]])

    def sample(self, position: int) -> tuple[Sample, list[VisualLayout]]:
        """The sample at a position, with its layouts in reading order."""
        source = self._sources[self._source_of[position]]
        record = int(self._records[position])
        sample = source.reading.sample(record, source.index.record(record), source.name)
        return sample, self._media.layouts_of(source.index.media_of(record))


def refusal(
    refused: list[DataError], remedy: str = "mend them, or set data.on_error=skip to leave them out"
) -> DataError:
    """One error for all refused samples: the first, how many of each kind, and a few more by name."""
    first, others = refused[0], refused[1:NAMED]
    lines = [first.detail] if first.detail else []
    lines += [f"{len(refused)} such samples: {counted(error.reason for error in refused)}"]
    lines += [f"also {error.source}, record {error.record}: {error.reason}" for error in others]
    lines += [remedy]
    return DataError(first.source, first.record, first.reason, "\n    ".join(lines))


def _view(
    source: IndexedSource,
    data: DataConfig,
    media: MediaReader,
    max_length: int,
    seed: int,
    refused: list[DataError],
) -> dict[str, np.ndarray]:
    """What the mixture takes of one source, in the order of its records: those of `SampleSizes`, `records`, int32, and
    `notes`, int8.

    What is left out goes to `refused`.
    """
    index = source.index
    selected = parse_sampling(source.config.sampling).select(len(index), (seed, source.name))
    taken: slice | np.ndarray
    if isinstance(selected, range):  # a slice copies nothing
        records, taken = np.arange(selected.start, selected.stop, dtype=np.int32), slice(selected.start, selected.stop)
    else:
        records = taken = np.asarray(selected, np.int32)
    tiles, visual, over = (values[taken] for values in _media_sums(index, data, media))
    text, supervised = index.text_tokens[taken], index.supervised[taken]
    lengths, is_refused = text + visual, text == REFUSED
    is_bad = is_refused | over | (lengths > max_length)
    if data.too_long == "cut":
        supervised = supervised.copy()
        for row in np.flatnonzero(is_bad & ~is_refused & ~over):
            if cut := _cut(index, int(records[row]), max_length - int(visual[row])):
                lengths[row], supervised[row] = cut[0] + visual[row], cut[1]
                is_bad[row] = False
    for row in np.flatnonzero(is_bad):
        refused.append(_refusal(source, int(records[row]), media, int(lengths[row]), max_length))
    columns = {"lengths": lengths, "visual": visual, "supervised": supervised, "tiles": tiles, "records": records}
    columns["notes"] = index.notes[taken]
    return {name: column[~is_bad] for name, column in columns.items()}


def _media_sums(index: Index, data: DataConfig, media: MediaReader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every record: tiles and visual tokens (int32), and whether its media exceed a limit (bool)."""
    sums = np.zeros(len(index), np.int32), np.zeros(len(index), np.int32), np.zeros(len(index), bool)
    for start in range(0, len(index), BLOCK):
        block = slice(start, start + BLOCK)
        for whole, part in zip(sums, _block_sums(index, block, data, media), strict=True):
            whole[block] = part
    return sums


def _block_sums(index: Index, block: slice, data: DataConfig, media: MediaReader) -> tuple[np.ndarray, ...]:
    starts = index.media_starts[block.start : block.stop + 1]
    counts = np.diff(starts)
    owner = np.repeat(np.arange(len(counts)), counts)
    kinds, heights, widths, frames, fps = (index.media[n][starts[0] : starts[-1]] for n in MediumSize._fields)
    is_video = kinds == MEDIUM_KINDS.index("video")
    rates, of_video = np.unique(np.stack([frames[is_video], fps[is_video]]), axis=1, return_inverse=True)
    taken = np.ones(len(owner), np.int32)
    taken[is_video] = np.array([media.num_taken(int(n), rate) for n, rate in rates.T], np.int32)[of_video]
    tiles, tokens = media.geometry.counts(owner, MediumShapes(is_video, heights, widths, taken))
    over = (heights.astype(np.int64) * widths > data.max_pixels) | (frames > data.max_frames)
    sums = [np.bincount(owner, weights=values, minlength=len(counts)) for values in (tiles, tokens, over)]
    return sums[0], sums[1], (sums[2] > 0) | (counts > data.max_media)


def _cut(index: Index, record: int, room: int) -> tuple[int, int] | None:
    """Text and supervised tokens of the longest shorter form that has room."""
    start, stop = index.cut_starts[record : record + 2]
    text, supervised = (index.cuts[name][start:stop] for name in ("text_tokens", "supervised"))
    fitting = np.flatnonzero(text <= room)
    return (int(text[fitting[-1]]), int(supervised[fitting[-1]])) if len(fitting) else None


def _refusal(source: IndexedSource, record: int, media: MediaReader, length: int, max_length: int) -> DataError:
    index, name = source.index, source.name
    if error := index.refusal(record, name):
        return error
    why = media.refusal(index.media_of(record)) or (TOO_LONG, f"{length} tokens, max_length {max_length}")
    return DataError(name, record_name(record_of(index.record(record)), record), *why)
