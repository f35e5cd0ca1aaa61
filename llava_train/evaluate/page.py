"""A page of questions and answers, in one file that opens anywhere: figures first, then the questions, errors first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from llava_train.config.schema import VideoConfig
from llava_train.data.media.image import UnreadableImage, open_image
from llava_train.data.media.video import UnreadableVideo, VideoReader
from llava_train.data.samples.sample import Sample
from llava_train.evaluate.prediction import Prediction
from llava_train.evaluate.summary import Row, with_interval
from llava_train.records.media_file import MediaFile
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.html import data_uri, escaped

TEMPLATE = Path(__file__).with_suffix(".html")
SIDE = 220  # pixels of a picture's longer side
FRAMES = 3  # of a video, as one strip
MEDIA = 4  # images and videos of one question
VERDICTS = ("wrong", "partly", "right")


class Page:
    """Reads thumbnails as training reads media. `max_pixels`, `decode_timeout`: as in the data's settings."""

    def __init__(self, max_pixels: int, decode_timeout: float):
        self._max_pixels = max_pixels
        self._videos = VideoReader(VideoConfig(fps=1.0, max_frames=FRAMES), decode_timeout, max_pixels)
        self._picture = lru_cache(maxsize=256)(self._read_picture)

    def render(
        self,
        title: str,
        rows: Sequence[Row],
        predictions: Sequence[Prediction],
        samples: Sequence[Sample],
        scores: Sequence[float],
        shown: int,
    ) -> str:
        """HTML without a reference to another file. Of the questions the `shown` with the lowest scores.

        samples: those that were predicted, for their media.
        """
        order = sorted(range(len(predictions)), key=lambda i: scores[i])[:shown]
        cards = "".join(self._card(predictions[i], samples[i], scores[i]) for i in order)
        left_out = f"the {len(order):,} lowest of " if len(order) < len(predictions) else ""
        options = {name: sorted({getattr(predictions[i], name) for i in order}) for name in ("source", "type")}
        return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
            title=escaped(title),
            rows="".join(map(_row, rows)),
            count=f"{left_out}{len(predictions):,} questions, errors first",
            selects="".join(_select(name, values) for name, values in options.items()),
            boxes="".join(_box(verdict, sum(verdict_of(scores[i]) == verdict for i in order)) for verdict in VERDICTS),
            cards=cards,
        )

    def close(self) -> None:
        self._videos.close()

    def _card(self, prediction: Prediction, sample: Sample, score: float) -> str:
        verdict = verdict_of(score)
        files = [*((file, "image") for file in sample.images), *((file, "video") for file in sample.videos)]
        media = "".join(self._picture(file, kind) for file, kind in files[:MEDIA])
        more = f"<span class=more>and {len(files) - MEDIA} more</span>" if len(files) > MEDIA else ""
        counts = Counter(prediction.answers or [prediction.answer])
        references = [text if count == 1 else f"{text} ({count} times)" for text, count in counts.most_common()]
        options = "".join(f"<li><b>{escaped(k)}</b> {escaped(text)}" for k, text in prediction.choices.items())
        return (
            f'<article class="{verdict}" data-verdict={verdict} data-source="{escaped(prediction.source)}"'
            f' data-type="{escaped(prediction.type)}"><div class=media>{media}{more}</div><div class=text>'
            f"<p class=question>{escaped(_words(prediction.question))}</p>"
            + (f"<ul>{options}</ul>" if options else "")
            + f"<dl><dt>answer<dd class=said>{escaped(prediction.predicted) or '<i>nothing</i>'}"
            f"<dt>reference<dd>{escaped(' | '.join(references))}</dl>"
            f"<footer><span class=badge>{_mark(score)}</span>{escaped(prediction.type)} · {escaped(prediction.source)}"
            f" · record {escaped(prediction.record)}</footer></div></article>"
        )

    def _read_picture(self, medium: MediaFile, kind: str) -> str:
        name = escaped(medium.name)
        try:
            image = self._strip(medium) if kind == "video" else open_image(medium, self._max_pixels)
        except (UnreadableImage, UnreadableVideo, FileNotFoundError):
            return f"<span class=more>{name} cannot be read</span>"
        image.thumbnail((SIDE * (FRAMES if kind == "video" else 1), SIDE))
        return f'<img alt="{name}" src="{data_uri(image)}" loading=lazy>'

    def _strip(self, medium: MediaFile) -> Image.Image:
        frames = self._videos.frames(medium, SIDE // 2)[:FRAMES]
        return Image.fromarray(np.concatenate(list(frames.transpose(0, 2, 3, 1)), axis=1))


def verdict_of(score: float) -> str:
    return VERDICTS[0 if score == 0 else 2 if score == 1 else 1]


def _mark(score: float) -> str:
    return {"wrong": "wrong", "right": "right"}.get(verdict_of(score), f"{score:.2f}")


def _row(row: Row) -> str:
    bar = (
        f"<span class=bar><i style='left:{row.score.low:.1%};width:{row.score.high - row.score.low:.1%}'></i>"
        f"<b style='left:{row.score.value:.1%}'></b></span>"
    )
    return (
        f"<tr><td>{escaped(row.source)}<td>{escaped(row.type)}<td class=n>{row.count:,}"
        f"<td class=n>{with_interval(row.score)}"
        f"<td>{bar}<td class=n>{with_interval(row.loss)}"
    )


def _select(name: str, values: Sequence[str]) -> str:
    options = "".join(f'<option value="{escaped(value)}">{escaped(value)}' for value in values)
    return f"<label>{name} <select data-by={name}><option value=''>all{options}</select></label>"


def _box(verdict: str, count: int) -> str:
    return f"<label class={verdict}><input type=checkbox checked value={verdict}> {verdict} {count:,}</label>"


def _words(question: str) -> str:
    return question.replace(IMAGE_TAG, "").replace(VIDEO_TAG, "").strip()
