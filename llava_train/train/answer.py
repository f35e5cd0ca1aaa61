"""A checkpoint folder that answers: samples in, texts out, prepared as its training prepared them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import torch

from llava_train.batch.packed import PackedBatch
from llava_train.config.schema import GenerateModel, Precision
from llava_train.data.collate import collate
from llava_train.data.encode import Encoder
from llava_train.data.media import MediaReader
from llava_train.data.sample import Sample
from llava_train.data.video import VideoReader
from llava_train.family.onevision.template import chat_name, make_template
from llava_train.model.build import DTYPES, load_checkpoint
from llava_train.model.generate import generate
from llava_train.model.hf import read_preparation
from llava_train.model.onevision import PackedForward

NO_LIMIT = 2**31  # prompts are refused by no length: the answer is what a user waits for


class Answerer:
    """The LlavaOnevision checkpoint `init`, ready to answer greedily.

    It is asked in the template of its training; of the projector stage (template plain) in ChatML: its language model
    knows no other way to be asked.
    """

    def __init__(
        self,
        init: str,
        device: torch.device,
        max_pixels: int,
        decode_timeout: float,
        precision: Precision | Literal["auto"] = "auto",
    ):
        loaded = load_checkpoint(GenerateModel(init), "auto" if precision == "auto" else DTYPES[precision])
        hf_model: Any = loaded.model
        hf_model.to(device)
        preparation = read_preparation(init, hf_model.config)
        self.tokenizer = loaded.tokenizer
        self._device = device
        self._forward = PackedForward(hf_model, preparation.geometry).eval()
        config = hf_model.config
        template = make_template(chat_name(preparation.template), "clean", preparation.tag_policy)
        self._encoder = Encoder(self.tokenizer, config.image_token_index, config.video_token_index, template, NO_LIMIT)
        videos = VideoReader(preparation.video, decode_timeout, max_pixels)
        self._media = MediaReader(preparation.geometry, videos, max_pixels)
        ends = hf_model.generation_config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or [self.tokenizer.eos_token_id])

    def answers(self, samples: Sequence[Sample], batch_size: int, max_new_tokens: int) -> Iterator[str]:
        """One answer per sample, to all its turns but a last answer, if it has one; `batch_size` at a time.

        The next batch is decoded while one is answered. Raises DataError.
        """
        chunks = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._ends[0]
        with ThreadPoolExecutor(max_workers=1) as background:
            waiting = background.submit(self._prepare, chunks[0])
            for following in [*chunks[1:], None]:
                batch = waiting.result().to(self._device)
                if following:
                    waiting = background.submit(self._prepare, following)
                for ids in generate(self._forward, batch, max_new_tokens, self._ends, pad):
                    yield str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _prepare(self, samples: Sequence[Sample]) -> PackedBatch:
        encoded, tiles = [], []
        for sample in samples:
            layouts = self._media.layouts(sample)
            encoded.append(self._encoder.encode_prompt(sample, layouts))
            tiles.append(self._media.tiles(sample, layouts))
        return collate(encoded, tiles, self._forward.geometry)


def with_media_of(sample: Sample, other: Sample) -> Sample:
    """`sample`'s question about `other`'s images and videos."""
    return replace(sample, images=other.images, videos=other.videos)
