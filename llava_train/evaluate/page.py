"""A page of questions and answers, in one file that opens anywhere: figures first, then the questions, errors first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from llava_train.shared.html import data_uri, page_template

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
        left_out = f"the {len(order):,} lowest of " if len(order) < len(predictions) else ""
        verdicts = Counter(verdict_of(scores[i]) for i in order)
        return page_template(TEMPLATE).render(
            title=title,
            rows=rows,
            with_interval=with_interval,
            count=f"{left_out}{len(predictions):,} questions, errors first",
            options={name: sorted({getattr(predictions[i], name) for i in order}) for name in ("source", "type")},
            verdicts={verdict: verdicts[verdict] for verdict in VERDICTS},
            cards=(self._card(predictions[i], samples[i], scores[i]) for i in order),
        )

    def close(self) -> None:
        self._videos.close()

    def _card(self, prediction: Prediction, sample: Sample, score: float) -> dict[str, Any]:
        files = [*((file, "image") for file in sample.images), *((file, "video") for file in sample.videos)]
        counts = Counter(prediction.answers or [prediction.answer])
        references = [text if count == 1 else f"{text} ({count} times)" for text, count in counts.most_common()]
        return {
            "prediction": prediction,
            "verdict": verdict_of(score),
            "mark": f"{score:.2f}" if verdict_of(score) == "partly" else verdict_of(score),
            "question": prediction.question.replace(IMAGE_TAG, "").replace(VIDEO_TAG, "").strip(),
            "references": " | ".join(references),
            "media": [{"name": file.name, "address": self._picture(file, kind)} for file, kind in files[:MEDIA]],
            "num_more": max(0, len(files) - MEDIA),
        }

    def _read_picture(self, medium: MediaFile, kind: str) -> str:
        """Its address; empty where it cannot be read."""
        try:
            image = self._strip(medium) if kind == "video" else open_image(medium, self._max_pixels)
        except (UnreadableImage, UnreadableVideo, FileNotFoundError):
            return ""
        image.thumbnail((SIDE * (FRAMES if kind == "video" else 1), SIDE))
        return data_uri(image)

    def _strip(self, medium: MediaFile) -> Image.Image:
        frames = self._videos.frames(medium, SIDE // 2)[:FRAMES]
        return Image.fromarray(np.concatenate(list(frames.transpose(0, 2, 3, 1)), axis=1))


def verdict_of(score: float) -> str:
    return VERDICTS[0 if score == 0 else 2 if score == 1 else 1]
