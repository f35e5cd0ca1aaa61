"""The page of a preview, in one file that opens anywhere: figures of each stage, then samples as the model sees them.

Enters: what `measure` finds and shows. Leaves: HTML without a reference to another file: `page.html`, `stage.html` and
`card.html` filled in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from transformers import PreTrainedTokenizerBase

from llava_train.config.schema import StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.data.preview.figures import length_bars, mixture_rows, pack_bars
from llava_train.data.preview.measure import SAMPLE_KINDS, Survey, sample_kind
from llava_train.data.preview.samples import Run, Shown, medium_words, runs
from llava_train.data.samples.encode import EncodedSample
from llava_train.family.base import VisualLayout
from llava_train.shared.errors import DataError
from llava_train.shared.html import data_uri, page_template

PAGE, STAGE, CARD = (Path(__file__).with_name(f"{name}.html") for name in ("page", "stage", "card"))
BUDGET = 8_000_000  # characters of all pictures
OF_SAMPLE = 1 / 150  # of what is left of them
PICTURE = 560  # pixels of the longer side of a picture, at most
FRAME, STRIP = 128, 8192  # pixels of a frame's side and of a strip's, at most
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)  # of these, the first within the room
SHARP = 256  # pixels of a picture below which it is shown enlarged, pixel by pixel
TEXT = 12_000  # characters of one run that are shown
RECORD = 1_500  # characters of a refused record


class PreviewPage:
    """Gathers the stages of a run and their samples."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, dims: ModelDims, seed: int):
        self._tokenizer, self._dims, self._seed = tokenizer, dims, seed
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._spent = 0
        self._stages: dict[str, Markup] = {}
        self._cards: list[Markup] = []
        self._sources: dict[str, None] = {}
        self._card = page_template(CARD)

    def add(self, shown: Shown) -> None:
        """A card for one sample."""
        self._sources[shown.source] = None
        if isinstance(shown.result, DataError):
            kind: str = "refused"
            content = {"error": shown.result, "record": _record_text(shown.record), "sample": None}
        else:
            kind, content = sample_kind(shown.result.visuals), {"sample": self._sample(shown.result, shown.tiles)}
        self._cards.append(Markup(self._card.render(shown=shown, kind=kind, **content)))

    def add_stage(self, name: str, stage: StageConfig, found: Survey) -> None:
        """The figures of one stage."""
        rows, widest = mixture_rows(found)
        figures: dict[str, Any] = {"lengths": None, "packs": {"bars": [], "words": "No sample can be used."}}
        if found.sizes:
            packs = pack_bars(found, stage, name, self._dims, self._seed)
            figures = {"lengths": length_bars(found), "packs": packs}
        content = {"found": found, "about": _about(found), "mixture": rows, "widest": widest, **figures}
        filled = page_template(STAGE).render(name=name, max_length=stage.max_length, **content)
        self._stages[name] = Markup(filled)

    def html(self, title: str) -> str:
        script = PAGE.read_text(encoding="utf-8").split("<script>")[1].split("</script>")[0]
        return page_template(PAGE).render(
            title=title,
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            stages=self._stages,
            sources=self._sources,
            kinds=SAMPLE_KINDS,
            cards=self._cards,
        )

    def _sample(self, encoded: EncodedSample, tiles: np.ndarray | None) -> dict[str, Any]:
        supervised, length, visual = encoded.num_supervised, len(encoded.input_ids), len(encoded.visual_positions)
        return {
            "length": length,
            "tiles": encoded.num_tiles,
            "parts": {"visual": visual, "text": length - visual - supervised, "supervised": supervised},
            "media": self._media(encoded.visuals, tiles),
            "runs": [self._run(encoded, run) for run in runs(encoded)],
        }

    def _run(self, encoded: EncodedSample, run: Run) -> dict[str, Any]:
        if run.layout:
            return {"medium": medium_words(run.layout)[1:-1]}
        pieces = list(self._pieces(encoded.input_ids[run.start : run.stop].tolist()))
        return {"medium": "", "learned": run.supervised, "start": run.start, "stop": run.stop, "pieces": pieces}

    def _pieces(self, ids: list[int]) -> Iterator[dict[str, Any]]:
        """Text of tokens; special ones marked as such, the middle of a very long text left out and counted."""
        start = 0
        for i in [i for i, token in enumerate(ids) if token in self._special]:
            yield from self._plain_pieces(ids[start:i])
            yield {"special": True, "text": self._decoded(ids[i : i + 1])}
            start = i + 1
        yield from self._plain_pieces(ids[start:])

    def _plain_pieces(self, ids: list[int]) -> list[dict[str, Any]]:
        words = self._decoded(ids) if ids else ""
        if len(words) <= TEXT:
            return [{"special": False, "left_out": 0, "text": words}]
        first = {"special": False, "left_out": len(words) - TEXT, "text": words[: TEXT // 2]}
        return [first, {"special": False, "left_out": 0, "text": words[-TEXT // 2 :]}]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _media(self, visuals: Sequence[VisualLayout], tiles: np.ndarray | None) -> list[dict[str, Any]]:
        if tiles is None or not visuals:
            return []
        room = (BUDGET - self._spent) * OF_SAMPLE / len(visuals)
        media, place = [], 0
        for layout in visuals:
            pictures = self._pictures(layout, tiles[place : place + layout.num_tiles], room)
            media.append({"kind": layout.kind, "pictures": pictures, "words": medium_words(layout)[1:-1]})
            place += layout.num_tiles
        return media

    def _pictures(self, layout: VisualLayout, tiles: np.ndarray, room: float) -> list[dict[str, Any]]:
        if layout.kind == "video":
            return [self._picture(tiles, (1, len(tiles)), room, "frames, first to last")]
        if layout.kind == "anyres":
            overview = self._picture(tiles[:1], (1, 1), room / 4, "overview: the whole image, squashed to one tile")
            return [overview, self._picture(tiles[1:], layout.grid, room * 3 / 4, "the tiles")]
        return [self._picture(tiles, (1, 1), room, f"one tile, {layout.kind}")]

    def _picture(self, tiles: np.ndarray, grid: tuple[int, int], room: float, alt: str) -> dict[str, Any]:
        """uint8 [n, 3, S, S] as one picture: the largest whose address is within `room` characters, if one is."""
        (rows, columns), side = grid, tiles.shape[-1]
        by_row = tiles.reshape(rows, columns, 3, side, side).transpose(0, 3, 1, 4, 2)
        whole = Image.fromarray(np.ascontiguousarray(by_row.reshape(rows * side, columns * side, 3)))
        limit = min(FRAME * columns, STRIP) if columns == len(tiles) > 1 else PICTURE
        for scale in SCALES:
            picture = whole.copy()
            picture.thumbnail((limit * scale, limit * scale))
            if len(address := data_uri(picture, "WEBP", 75)) <= room:
                break
        else:
            return {"address": ""}
        self._spent += len(address)
        size = {"width": picture.width, "height": picture.height, "sharp": max(picture.size) < SHARP}
        return {"address": address, "rows": rows, "columns": columns, "alt": alt, **size}


def _record_text(record: Any) -> str:
    if isinstance(record, dict):  # media within files by name, without their content
        media = {key: list(map(str, record[key])) for key in ("image", "video") if isinstance(record.get(key), list)}
        record = record | media
    return json.dumps(record, ensure_ascii=False, default=str, indent=1)[:RECORD]


def _about(found: Survey) -> dict[str, str]:
    """The numbers of a stage, by what each counts."""
    weights = found.weights()
    tokens = sum(size.tokens * weight for size, weight in zip(found.sizes, weights, strict=True))
    learned = sum(size.supervised * weight for size, weight in zip(found.sizes, weights, strict=True))
    return {
        "samples in an epoch": f"{sum(found.draws.values()):,}",
        "tokens in an epoch": f"{tokens:,.0f}" if found.is_whole else f"about {float(f'{tokens:.3g}'):,.0f}",
        "of them learned": f"{learned / tokens:.2%}" if tokens else "0",
        "samples measured": f"{found.measured.total():,}",
        "shown below": f"{found.shown.total():,}",
        "refused": f"{found.refused.total():,}",
    }
