"""Samples as the model sees them, for people (text) and programs (JSONL).

Enters: a stage's sources. Leaves: one `Shown` per sample, refused ones with their reason. Pixels are decoded, so that
what only decoding finds is refused here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from llava_train.batch.packed import IGNORE_INDEX, VisualLayout
from llava_train.config.errors import DataError
from llava_train.config.mixture import SourceConfig
from llava_train.config.schema import StageConfig
from llava_train.data.encode import EncodedSample, Encoder
from llava_train.data.formats import record_id, to_sample
from llava_train.data.media import MediaReader
from llava_train.data.mixture import sampled_records
from llava_train.data.sample import Sample
from llava_train.family.onevision.chat import CheckpointTemplate
from llava_train.family.onevision.template import Template, media_tags, rendered_by_template

SUPERVISED, MEDIUM = "bold green", "bold magenta"


@dataclass(frozen=True)
class Shown:
    """One sample: encoded, or with the error that refused it."""

    id: str
    source: str
    stage: str
    result: EncodedSample | DataError


@dataclass
class Summary:
    """What a preview went through."""

    shown: Counter[str] = field(default_factory=Counter)  # by source
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    unrendered: int = 0  # samples that no chat message renders as they are trained on

    def __str__(self) -> str:
        parts = [f"{sum(self.shown.values())} samples: {_counted(self.shown)}"]
        parts.append(f"{sum(self.refused.values())} refused" + (f": {_counted(self.refused)}" if self.refused else ""))
        parts.append(f"{self.unrendered} that no chat message renders as trained")
        return "; ".join(parts)


def preview_stage(
    name: str,
    stage: StageConfig,
    sources: dict[str, SourceConfig],
    encoder: Encoder,
    media: MediaReader,
    seed: int,
    count: int,
    summary: Summary,
) -> Iterator[Shown]:
    """The first `count` samples of the stage in the order of its sources, all if 0. Counts them into `summary`."""
    given = 0
    for source_name, source in sources.items():
        for position, record in sampled_records(source_name, source, seed):
            if count and given == count:
                return
            given += 1
            result: EncodedSample | DataError
            summary.shown[source_name] += 1
            try:
                sample = to_sample(record, source_name, position, Path(source.media_root))
                result = _encode(sample, encoder, media)
                summary.unrendered += stage.template != "plain" and not _is_rendered(sample, stage, encoder.template)
            except DataError as error:
                result = error
                summary.refused[error.reason] += 1
            yield Shown(record_id(record, position), source_name, name, result)


def _encode(sample: Sample, encoder: Encoder, media: MediaReader) -> EncodedSample:
    layouts = media.layouts(sample)
    encoded = encoder.encode(sample, layouts)
    media.tiles(sample, layouts)
    return encoded


def _is_rendered(sample: Sample, stage: StageConfig, template: Template) -> bool:
    tags = media_tags(len(sample.images), len(sample.videos))
    if isinstance(template, CheckpointTemplate):
        return template.renders(sample.turns, tags)
    return rendered_by_template(sample.turns, tags, stage.tag_policy)


def as_record(shown: Shown) -> dict[str, Any]:
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


def as_text(shown: Shown, tokenizer: PreTrainedTokenizerBase, in_colour: bool) -> Text:
    """Supervised text green, or in double brackets without colour; each medium as its size and counts."""
    text = Text()
    head = f"{shown.source}/{shown.id}"
    if isinstance(shown.result, DataError):
        return text.append(f"{head}  refused: {shown.result}\n", style="bold red")
    encoded = shown.result
    counts = f"{len(encoded.input_ids)} tokens, {encoded.num_supervised} supervised, {encoded.num_tiles} tiles"
    text.append(f"{head}  {counts}\n", style="bold")
    starts = _medium_starts(encoded)
    inside = set(encoded.visual_positions.tolist())
    spans = [(i, encoded.labels[i] != IGNORE_INDEX, i in inside) for i in range(len(encoded.input_ids))]
    for (supervised, visual), run in groupby(spans, key=lambda span: span[1:]):
        positions = [span[0] for span in run]
        if visual:
            for position in positions:
                if position in starts:
                    text.append(_medium(starts[position]), style=MEDIUM)
            continue
        ids = encoded.input_ids[positions].tolist()
        words = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if supervised:
            text.append(words if in_colour else f"[[{words}]]", style=SUPERVISED)
        else:
            text.append(words)
    return text


def _medium_starts(encoded: EncodedSample) -> dict[int, VisualLayout]:
    starts, place = {}, 0
    for layout in encoded.visuals:
        starts[int(encoded.visual_positions[place])] = layout
        place += layout.num_tokens
    return starts


def _medium(layout: VisualLayout) -> str:
    rows, columns = layout.grid
    size = f"{layout.width}x{layout.height}"
    shape = {"video": f"{rows} frames, ", "anyres": f"{rows}x{columns} grid, {layout.num_tiles} tiles, "}
    return f"<{layout.kind} {size}: {shape.get(layout.kind, '')}{layout.num_tokens} tokens>"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())
