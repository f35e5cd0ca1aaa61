"""The page of a preview, in one file that opens anywhere: figures of each stage, then samples as the model sees them.

Enters: what `survey` finds and shows. Leaves: HTML without a reference to another file, `page.html` filled in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from llava_train.batch.packed import VisualLayout
from llava_train.config.schema import StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.data.preview.figures import lengths, mixture_table, packs
from llava_train.data.preview.measure import SAMPLE_KINDS, SampleKind, Survey, sample_kind
from llava_train.data.preview.samples import Run, Shown, medium_words, runs
from llava_train.data.samples.encode import EncodedSample
from llava_train.shared.errors import DataError
from llava_train.shared.html import data_uri, escaped

TEMPLATE, STAGE = Path(__file__).with_suffix(".html"), Path(__file__).with_name("stage.html")
BUDGET = 8_000_000  # characters of all pictures
OF_SAMPLE = 1 / 150  # of what is left of them
PICTURE = 560  # pixels of the longer side of a picture, at most
FRAME, STRIP = 128, 8192  # pixels of a frame's side and of a strip's, at most
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)  # of these, the first within the room
SHARP = 256  # pixels of a picture below which it is shown enlarged, pixel by pixel
TEXT = 12_000  # characters of one run that are shown
RECORD = 1_500  # characters of a refused record
ESTIMATED = "Estimated from the samples measured, each source by its share of an epoch."


class PreviewPage:
    """Gathers the stages of a run and their samples."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, dims: ModelDims, seed: int):
        self._tokenizer, self._dims, self._seed = tokenizer, dims, seed
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._spent = 0
        self._stages: dict[str, str] = {}
        self._cards: list[str] = []
        self._sources: dict[str, None] = {}

    def add(self, shown: Shown) -> None:
        """A card for one sample."""
        self._sources[shown.source] = None
        kind: SampleKind
        if isinstance(shown.result, DataError):
            kind, body = "refused", _refused(shown.result, shown.record)
        else:
            kind, body = sample_kind(shown.result.visuals), self._sample(shown.result, shown)
        self._cards.append(
            f'<article data-stage="{escaped(shown.stage)}" data-source="{escaped(shown.source)}" data-kind={kind}>'
            f"<header><span class='badge {kind}'>{kind}</span><h3>{escaped(shown.id)}</h3>"
            f"<span class=soft>{escaped(shown.source)}</span>{body}</article>"
        )

    def add_stage(self, name: str, stage: StageConfig, found: Survey) -> None:
        """The figures of one stage."""
        empty = "", "No sample can be used."
        bars, packed = packs(found, stage, name, self._dims, self._seed) if found.sizes else empty
        self._stages[name] = Template(STAGE.read_text(encoding="utf-8")).substitute(
            name=escaped(name),
            about=_about(found),
            estimated="" if found.is_whole else ESTIMATED,
            mixture=mixture_table(found),
            lengths=lengths(found) if found.sizes else "<p>No sample can be used.",
            max_length=f"{stage.max_length:,}",
            packs=bars,
            packed=packed,
        )

    def html(self, title: str) -> str:
        page = TEMPLATE.read_text(encoding="utf-8")
        script = page.split("<script>")[1].split("</script>")[0]
        return Template(page).substitute(
            title=escaped(title),
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            stages="".join(self._stages.values()),
            tabs="".join(_tab(name, i == 0) for i, name in enumerate(self._stages)),
            sources=_options(self._sources),
            kinds=_options(SAMPLE_KINDS),
            cards="".join(self._cards),
        )

    def _sample(self, encoded: EncodedSample, shown: Shown) -> str:
        supervised, length, visual = encoded.num_supervised, len(encoded.input_ids), len(encoded.visual_positions)
        parts = {"visual": visual, "text": length - visual - supervised, "supervised": supervised}
        bar = "".join(f"<i class={name} style=flex-grow:{count}></i>" for name, count in parts.items())
        text = "".join(self._run(encoded, run) for run in runs(encoded))
        cut = f" · <span class=bad>{shown.cut:,} tokens cut from its end</span>" if shown.cut else ""
        return (
            f"<span class=counts><b class=supervised>{supervised:,} learned</b> of {length:,} tokens"
            f"{f' · {visual:,} visual · {encoded.num_tiles} tiles' if visual else ''}{cut}</span></header>"
            f"<div class=parts>{bar}</div><div class=body>{self._media(encoded.visuals, shown.tiles)}"
            f"<div class=text tabindex=0 role=region aria-label=text>{text}</div></div>"
        )

    def _run(self, encoded: EncodedSample, run: Run) -> str:
        if run.layout:
            return f"<span class=chip>{escaped(medium_words(run.layout)[1:-1])}</span>"
        words = self._words(encoded.input_ids[run.start : run.stop].tolist())
        place = f"data-tokens={run.start}-{run.stop}"
        if run.supervised:
            return f"<mark {place} title='learned: {run.stop - run.start} tokens from {run.start}'>{words}</mark>"
        return f"<span {place}>{words}</span>"

    def _words(self, ids: list[int]) -> str:
        """Text of tokens; special ones marked as such, the middle of a very long text left out and said so."""
        parts, start = [], 0
        for i in [i for i, token in enumerate(ids) if token in self._special]:
            parts += [self._decoded(ids[start:i]), f"<b>{self._decoded(ids[i : i + 1])}</b>"]
            start = i + 1
        return "".join([*parts, self._decoded(ids[start:])])

    def _decoded(self, ids: list[int]) -> str:
        if not ids:
            return ""
        words = str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if len(words) <= TEXT:
            return escaped(words)
        left_out = f"<em>… {len(words) - TEXT:,} characters left out here …</em>"
        return escaped(words[: TEXT // 2]) + left_out + escaped(words[-TEXT // 2 :])

    def _media(self, visuals: Sequence[VisualLayout], tiles: np.ndarray | None) -> str:
        if tiles is None or not visuals:
            return ""
        room = (BUDGET - self._spent) * OF_SAMPLE / len(visuals)
        figures, place = [], 0
        for layout in visuals:
            figures.append(self._medium(layout, tiles[place : place + layout.num_tiles], room))
            place += layout.num_tiles
        return f"<div class=media>{''.join(figures)}</div>"

    def _medium(self, layout: VisualLayout, tiles: np.ndarray, room: float) -> str:
        if layout.kind == "video":
            frames = self._picture(tiles, (1, len(tiles)), room, "frames, first to last")
            pictures = f"<div class=strip tabindex=0 role=region aria-label=frames>{frames}</div>"
        elif layout.kind == "anyres":
            pictures = self._picture(tiles[:1], (1, 1), room / 4, "overview: the whole image, squashed to one tile")
            pictures += self._picture(tiles[1:], layout.grid, room * 3 / 4, "the tiles")
        else:
            pictures = self._picture(tiles, (1, 1), room, f"one tile, {layout.kind}")
        told = escaped(medium_words(layout)[1:-1])
        return f"<figure class={layout.kind}>{pictures}<figcaption>{told}</figcaption></figure>"

    def _picture(self, tiles: np.ndarray, grid: tuple[int, int], room: float, alt: str) -> str:
        """uint8 [n, 3, S, S] as one picture; the largest whose address is within `room` characters."""
        (rows, columns), side = grid, tiles.shape[-1]
        by_row = tiles.reshape(rows, columns, 3, side, side).transpose(0, 3, 1, 4, 2)
        whole = Image.fromarray(np.ascontiguousarray(by_row.reshape(rows * side, columns * side, 3)))
        limit = min(FRAME * columns, STRIP) if columns == len(tiles) > 1 else PICTURE
        for scale in SCALES:
            picture = whole.copy()
            picture.thumbnail((limit * scale, limit * scale))
            if len(uri := data_uri(picture, "WEBP", 75)) <= room:
                break
        else:
            return "<span class=soft>no room left on this page for the picture</span>"
        self._spent += len(uri)
        sharp = " class=sharp" if max(picture.size) < SHARP else ""
        return (
            f'<span class=grid style="--rows:{rows};--columns:{columns}"><img{sharp} loading=lazy'
            f' width={picture.width} height={picture.height} alt="{escaped(alt)}" src="{uri}"></span>'
        )


def _refused(error: DataError, record: Any) -> str:
    if isinstance(record, dict):  # media within files by name, without their content
        media = {key: list(map(str, record[key])) for key in ("image", "video") if isinstance(record.get(key), list)}
        record = record | media
    told = json.dumps(record, ensure_ascii=False, default=str, indent=1)[:RECORD]
    return (
        f"<span class=counts><b>{escaped(error.reason)}</b></span></header><div class=body><div class=text>"
        f"<p>{escaped(str(error))}</p><details><summary>its record</summary><pre>{escaped(told)}</pre></details>"
        "</div></div>"
    )


def _about(found: Survey) -> str:
    """The numbers of a stage: a few words each, under its figure."""
    weights = found.weights()
    tokens = sum(size.tokens * weight for size, weight in zip(found.sizes, weights, strict=True))
    learned = sum(size.supervised * weight for size, weight in zip(found.sizes, weights, strict=True))
    figures = {
        "samples in an epoch": f"{sum(found.draws.values()):,}",
        "tokens in an epoch": f"{tokens:,.0f}" if found.is_whole else f"about {float(f'{tokens:.3g}'):,.0f}",
        "of them learned": f"{learned / tokens:.2%}" if tokens else "0",
        "samples measured": f"{found.measured.total():,}",
        "shown below": f"{found.shown.total():,}",
        "refused": f"{found.refused.total():,}",
    }
    return "".join(f"<div><dd>{value}<dt>{name}</div>" for name, value in figures.items())


def _tab(name: str, checked: bool) -> str:
    field = f'<input type=radio name=stage value="{escaped(name)}"{" checked" * checked}>'
    return f"<label>{field}<span>{escaped(name)}</span></label>"


def _options(values: Iterable[str]) -> str:
    return "".join(f'<option value="{escaped(value)}">{escaped(value)}' for value in values)
