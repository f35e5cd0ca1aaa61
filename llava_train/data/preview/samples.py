"""Samples as the model sees them, for people (text) and programs (JSONL).

Enters: a stage's sources. Leaves: one `Shown` per sample, refused ones with their reason. Pixels are decoded, so that
what only decoding finds is refused here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from llava_train.batch.packed import IGNORE_INDEX
from llava_train.config.mixture import SourceConfig
from llava_train.config.schema import DataConfig, StageConfig
from llava_train.data.media.sample_media import MediaReader
from llava_train.data.samples.encode import EncodedSample, Encoder
from llava_train.data.samples.parse import MediaRoots, media_roots, record_id, to_answered
from llava_train.data.samples.sample import Sample
from llava_train.data.samples.sample_notes import NAMED, note_line, note_of
from llava_train.data.samples.sampled_records import sampled_records
from llava_train.family.base import VisualLayout
from llava_train.shared.errors import DataError
from llava_train.text.base import Template
from llava_train.text.checkpoint_template import CheckpointTemplate
from llava_train.text.media_tags import media_tags, rendered_by_template

SUPERVISED, MEDIUM = "bold green", "bold magenta"


@dataclass(frozen=True)
class Shown:
    """One sample: encoded, or with the error that refused it. `record`: as read. `tiles`: where pixels were decoded."""

    id: str
    source: str
    stage: str
    result: EncodedSample | DataError
    record: Any
    tiles: np.ndarray | None = None
    cut: int = 0  # tokens of its end that data.too_long=cut leaves out


@dataclass(frozen=True)
class Run:
    """Tokens `start` to `stop` of a sample, treated alike: those of one medium, or text learned or only read."""

    start: int
    stop: int
    supervised: bool
    layout: VisualLayout | None


@dataclass
class Summary:
    """What a preview went through."""

    shown: Counter[str] = field(default_factory=Counter)  # by source
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    unrendered: int = 0  # samples that no chat message renders as they are trained on
    notes: dict[int, list[str]] = field(default_factory=dict)  # names of samples by note: see `sample_notes.py`

    def add(self, source: str, result: EncodedSample | DataError, unrendered: bool) -> None:
        self.shown[source] += 1
        self.unrendered += unrendered
        if isinstance(result, DataError):
            self.refused[result.reason] += 1

    def __str__(self) -> str:
        parts = [f"{sum(self.shown.values())} samples: {_counted(self.shown)}"]
        parts.append(f"{sum(self.refused.values())} refused" + (f": {_counted(self.refused)}" if self.refused else ""))
        parts.append(f"{self.unrendered} that no chat message renders as trained")
        notes = [note_line(note, len(names), names[:NAMED]) for note, names in sorted(self.notes.items())]
        return "\n".join([*notes, "; ".join(parts)])


class Preview:
    """The samples of one stage, as training reads them. Counts those with pixels into `summary`."""

    def __init__(
        self,
        name: str,
        stage: StageConfig,
        sources: dict[str, SourceConfig],
        encoder: Encoder,
        media: MediaReader,
        data: DataConfig,
        seed: int,
        summary: Summary,
    ):
        self.name, self.stage, self.sources, self.seed = name, stage, sources, seed
        self._encoder, self._media, self._data, self._summary = encoder, media, data, summary

    def first(self, count: int) -> Iterator[Shown]:
        """The first `count` samples of the stage in the order of its sources, all if 0."""
        return islice((shown for name in self.sources for shown in self.of_source(name, None)), count or None)

    def of_source(self, name: str, decoded: int | None) -> Iterator[Shown]:
        """What the mixture takes of one source; pixels of the first `decoded` alone, of all if None."""
        source = self.sources[name]
        for number, (position, record) in enumerate(sampled_records(name, source, self.seed)):
            decode = decoded is None or number < decoded
            yield self._shown(name, media_roots(self._data, source), position, record, decode)

    def _shown(self, source: str, roots: MediaRoots, position: int, record: Any, decode: bool) -> Shown:
        tiles, cut, unrendered = None, 0, False
        result: EncodedSample | DataError
        try:
            sample = to_answered(record, source, position, roots)
            layouts = self._media.layouts(sample)
            result = self._encoder.encode(sample, layouts)
            if decode:
                tiles = self._media.tiles(sample, layouts)
                if self._data.too_long == "cut":
                    whole = self._encoder.measure(sample).text_tokens + len(result.visual_positions)
                    cut = whole - len(result.input_ids)
                if note := note_of(sample):
                    self._summary.notes.setdefault(note, []).append(f"{source}, record {sample.record}")
                unrendered = self.stage.template != "plain" and not _is_rendered(
                    sample, self.stage, self._encoder.template
                )
        except DataError as error:
            result = error
        if decode:
            self._summary.add(source, result, unrendered)
        return Shown(record_id(record, position), source, self.name, result, record, tiles, cut)


def _is_rendered(sample: Sample, stage: StageConfig, template: Template) -> bool:
    tags = media_tags(len(sample.images), len(sample.videos))
    if isinstance(template, CheckpointTemplate):
        return template.renders(sample.turns, tags)
    return rendered_by_template(sample.turns, tags, stage.tag_policy)


def sample_record(shown: Shown) -> dict[str, Any]:
    """The JSONL form: ids, labels and visuals in reading order, or `error`."""
    record: dict[str, Any] = {"id": shown.id, "source": shown.source, "stage": shown.stage}
    if isinstance(shown.result, DataError):
        return record | {"error": str(shown.result)}
    encoded = shown.result
    visual = [
        {
            "kind": layout.kind,
            "width": layout.width,
            "height": layout.height,
            "grid": list(layout.grid),
            "tiles": layout.num_tiles,
            "tokens": layout.num_tokens,
        }
        for layout in encoded.visuals
    ]
    return record | {"input_ids": encoded.input_ids.tolist(), "labels": encoded.labels.tolist(), "visual": visual}


def sample_text(shown: Shown, tokenizer: PreTrainedTokenizerBase, in_colour: bool) -> Text:
    """Supervised text green, or in double brackets without colour; each medium as its size and counts."""
    text = Text()
    head = f"{shown.source}/{shown.id}"
    if isinstance(shown.result, DataError):
        return text.append(f"{head}  refused: {shown.result}\n", style="bold red")
    encoded = shown.result
    counts = f"{len(encoded.input_ids)} tokens, {encoded.num_supervised} supervised, {encoded.num_tiles} tiles"
    text.append(f"{head}  {counts}\n", style="bold")
    for run in runs(encoded):
        if run.layout:
            text.append(medium_words(run.layout), style=MEDIUM)
            continue
        ids = encoded.input_ids[run.start : run.stop].tolist()
        words = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if run.supervised:
            text.append(words if in_colour else f"[[{words}]]", style=SUPERVISED)
        else:
            text.append(words)
    return text


def runs(encoded: EncodedSample) -> Iterator[Run]:
    """The sample in order. Worked case, a video of 2 tokens, `Hi` supervised: 0-2 the video, 2-3 supervised."""
    kinds = (encoded.labels != IGNORE_INDEX).astype(np.int64)
    place = 0
    for i, layout in enumerate(encoded.visuals, start=2):
        kinds[encoded.visual_positions[place : place + layout.num_tokens]] = i
        place += layout.num_tokens
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    for start, stop in pairwise(edges):
        kind = int(kinds[start])
        yield Run(start, stop, kind == 1, encoded.visuals[kind - 2] if kind > 1 else None)


def medium_words(layout: VisualLayout) -> str:
    rows, columns = layout.grid
    size = f"{layout.width}x{layout.height}"
    shape = {"video": f"{rows} frames, ", "anyres": f"{rows}x{columns} grid, {layout.num_tiles} tiles, "}
    return f"<{layout.kind} {size}: {shape.get(layout.kind, '')}{layout.num_tokens} tokens>"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())
