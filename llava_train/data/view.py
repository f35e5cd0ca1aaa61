"""A stage's samples: what its mixture takes of the indexes of its sources, with lengths and tiles by its geometry.

Enters: the indexes. Leaves: `Samples`, computed in closed form on whole columns, so that a stage of millions starts at
once, whatever the limits and the geometry.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

import numpy as np

from llava_train.batch.packed import VisualLayout
from llava_train.config.errors import DataError
from llava_train.config.mixture import SourceConfig
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import DataConfig
from llava_train.data.encode import TOO_LONG
from llava_train.data.formats import record_name
from llava_train.data.index import KINDS, REFUSED, Index
from llava_train.data.indexing import Reading
from llava_train.data.media import MediaReader, MediumSize
from llava_train.data.sample import Sample
from llava_train.data.sources import record_of

NAMED = 5  # refused samples that an error names


@dataclass(frozen=True)
class Sizes:
    """Of each sample. lengths: tokens, visual ones with them. sources: positions in the mixture; records: in these."""

    lengths: np.ndarray  # int32 [samples], like all but `content`
    visual: np.ndarray
    tiles: np.ndarray
    supervised: np.ndarray
    repeats: np.ndarray
    sources: np.ndarray
    records: np.ndarray
    content: np.ndarray  # uint64; equal for samples about the same media


@dataclass(frozen=True)
class Source:
    """One source of a mixture, with its index."""

    name: str
    config: SourceConfig
    index: Index
    reading: Reading


class Samples:
    """The sound samples of a stage, by position. Picklable.

    refused: what the mixture takes and is left out; faults: those of them that `data.on_error` decides on.
    """

    def __init__(self, sources: list[Source], data: DataConfig, media: MediaReader, max_length: int, seed: int):
        self._sources = sources
        self._media = media
        self.refused: list[DataError] = []
        parts = [_view(i, source, data, media, max_length, seed, self.refused) for i, source in enumerate(sources)]
        joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Sizes)}
        self.sizes = Sizes(**joined)
        skips = data.too_long == "skip"
        self.faults = [error for error in self.refused if not (skips and error.reason == TOO_LONG)]

    def __len__(self) -> int:
        return len(self.sizes.lengths)

    def num_by_source(self, positions: np.ndarray) -> dict[str, int]:
        """How many of the positions are of each source."""
        counts = np.bincount(self.sizes.sources[positions], minlength=len(self._sources))
        return dict(zip([source.name for source in self._sources], counts.tolist(), strict=True))

    def sample(self, position: int) -> tuple[Sample, list[VisualLayout]]:
        """The sample at a position, with its layouts in reading order."""
        source = self._sources[self.sizes.sources[position]]
        record = int(self.sizes.records[position])
        sample = source.reading.sample(record, source.index.record(record), source.name)
        return sample, self._media.layouts_of(source.index.media_of(record))


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


def _view(
    number: int,
    source: Source,
    data: DataConfig,
    media: MediaReader,
    max_length: int,
    seed: int,
    refused: list[DataError],
) -> Sizes:
    """What the mixture takes of one source, in the order of its records; what is left out goes to `refused`."""
    index = source.index
    selected = parse_sampling(source.config.sampling).select(len(index), (seed, source.name))
    taken = np.arange(selected.start, selected.stop) if isinstance(selected, range) else np.asarray(selected, np.int64)
    tiles, visual, over = _media_sums(index, data, media)
    tiles, visual, over = tiles[taken], visual[taken], over[taken]
    text, supervised = index.text_tokens[taken], index.supervised[taken].copy()
    too_long = (text != REFUSED) & ~over & (text + visual > max_length)
    if data.too_long == "cut":
        text = text.copy()
        for row in np.flatnonzero(too_long):
            if cut := _cut(index, int(taken[row]), max_length - int(visual[row])):
                text[row], supervised[row] = cut
                too_long[row] = False
    is_bad = (text == REFUSED) | over | too_long
    for row in np.flatnonzero(is_bad):
        refused.append(_refusal(source, int(taken[row]), media, int(text[row] + visual[row]), max_length))
    sound = np.flatnonzero(~is_bad)
    whole = np.full(len(sound), 1, dtype=np.int32)
    return Sizes(
        lengths=(text + visual)[sound],
        visual=visual[sound],
        tiles=tiles[sound],
        supervised=supervised[sound],
        repeats=whole * source.config.repeat,
        sources=whole * number,
        records=taken[sound].astype(np.int32),
        content=index.content[taken[sound]],
    )


def _media_sums(index: Index, data: DataConfig, media: MediaReader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every record: tiles and visual tokens (int32), and whether its media exceed a limit."""
    counts = np.diff(index.media_starts)
    owner = np.repeat(np.arange(len(index), dtype=np.int32), counts)
    kinds, heights, widths, frames, fps = (index.media[name] for name in MediumSize._fields)
    is_image = kinds == KINDS.index("image")
    num_images = np.bincount(owner[is_image], minlength=len(index))
    tiles, tokens = np.ones(len(owner), np.int32), np.full(len(owner), media.geometry.padded(1, 1).num_tokens, np.int32)
    alone = np.flatnonzero(is_image & ((num_images[owner] == 1) | (media.geometry.mode == "square")))
    tiles[alone], tokens[alone] = media.geometry.image_arrays(heights[alone], widths[alone])
    videos = np.flatnonzero(~is_image)
    rates, of_video = np.unique(np.stack([frames[videos], fps[videos]]), axis=1, return_inverse=True)
    layouts = [media.layouts_of([MediumSize("video", 1, 1, int(n), rate)])[0] for n, rate in rates.T]
    tiles[videos] = np.array([layout.num_tiles for layout in layouts], np.int32)[of_video]
    tokens[videos] = np.array([layout.num_tokens for layout in layouts], np.int32)[of_video]
    over = (heights.astype(np.int64) * widths > data.max_pixels) | (frames > data.max_frames)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values, minlength=len(index)).astype(np.int32)

    return summed(tiles), summed(tokens), (summed(over) > 0) | (counts > data.max_media)


def _cut(index: Index, record: int, room: int) -> tuple[int, int] | None:
    """Text and supervised tokens of the longest shorter form that has room."""
    start, stop = index.cut_starts[record : record + 2]
    text, supervised = (index.cuts[name][start:stop] for name in ("text_tokens", "supervised"))
    fitting = np.flatnonzero(text <= room)
    return (int(text[fitting[-1]]), int(supervised[fitting[-1]])) if len(fitting) else None


def _refusal(source: Source, record: int, media: MediaReader, length: int, max_length: int) -> DataError:
    index, name = source.index, source.name
    if error := index.refusal(record, name):
        return error
    told = media.refusal(index.media_of(record)) or (TOO_LONG, f"{length} tokens, max_length {max_length}")
    return DataError(name, record_name(record_of(index.record(record)), record), *told)
