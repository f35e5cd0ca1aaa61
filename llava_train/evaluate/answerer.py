"""A checkpoint folder that answers: samples in, texts out, prepared as its training prepared them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from llava_train.batch.packed import PackedBatch
from llava_train.config.rules.generate import SAMPLING
from llava_train.config.schema import GenerateModel, Precision
from llava_train.data.loading.collate import collate
from llava_train.data.media.sample_media import Limits, MediaReader
from llava_train.data.media.video import VideoReader
from llava_train.data.samples.encode import EncodedSample, Encoder
from llava_train.data.samples.sample import Sample
from llava_train.family.base import VisualLayout
from llava_train.model.forward.generate import generate
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import read_preparation
from llava_train.model.loading.load_model import DTYPES, load_checkpoint
from llava_train.model.prepare.adapter import attach_adapter
from llava_train.shared.errors import ConfigError, DataError
from llava_train.text.checkpoint_template import stage_template
from llava_train.text.named_templates import chat_name

NO_LIMIT = 2**31  # prompts are refused by no length: the answer is what a user waits for
MAX_PIXELS = 2**30 // 6  # Pillow's own limit before it warns of a decompression bomb
DECODE_TIMEOUT = 60.0  # seconds
Encode = Callable[[Sample, Sequence[VisualLayout]], EncodedSample]
Batch = tuple[PackedBatch | None, list[DataError | None]]  # None: no sample of it can be asked; sample by sample


class Answerer:
    """The checkpoint `init`, with an adapter or without, ready to answer.

    It is asked as it was trained, or as its adapter was: template, grid of its images, frames, end tokens. What the
    projector stage made (template plain) is asked in ChatML: its language model knows no other way to be asked.

    device_map: auto spreads the model over all devices, and `device` is where batches go.
    own_sampling: options of generation that the checkpoint itself sets; used where they are passed.
    """

    def __init__(
        self,
        init: str,
        device: torch.device,
        max_pixels: int,
        decode_timeout: float,
        precision: Precision | Literal["auto"] = "auto",
        adapter: str = "",
        load_in: Literal["none", "4bit", "8bit"] = "none",
        device_map: Literal["none", "auto"] = "none",
    ):
        dtype: torch.dtype | Literal["auto"] = "auto" if precision == "auto" else DTYPES[precision]
        loaded = load_checkpoint(GenerateModel(init), dtype, load_in, device_map)
        hf_model: Any = loaded.model
        if adapter:
            _refuse_offload(hf_model)
            attach_adapter(hf_model, Path(adapter))
        if device_map == load_in == "none":  # else its loader has placed it
            hf_model.to(device)
        preparation = read_preparation(str(loaded.folder), hf_model.config, adapter)
        self.tokenizer = loaded.tokenizer
        self._forward = PackedForward(hf_model, preparation.geometry, device=device).eval()
        config = hf_model.config
        name = chat_name(preparation.template)
        template = stage_template(name, "clean", preparation.tag_policy, self.tokenizer, "model.init")
        self._encoder = Encoder(self.tokenizer, config.image_token_index, config.video_token_index, template, NO_LIMIT)
        self._videos = VideoReader(preparation.video, decode_timeout, max_pixels)
        self._media = MediaReader(preparation.geometry, self._videos, Limits(max_pixels))
        own = hf_model.generation_config
        if adapter and (Path(adapter) / GENERATION_CONFIG_NAME).is_file():
            own = GenerationConfig.from_pretrained(adapter, trust_remote_code=False)
        self._ends = [own.eos_token_id] if isinstance(own.eos_token_id, int) else list(own.eos_token_id or [])
        self._ends = self._ends or [self.tokenizer.eos_token_id]
        pad = self.tokenizer.pad_token_id
        self._pad = self._ends[0] if pad is None else pad
        self.own_sampling = {name: value for name in SAMPLING if (value := getattr(own, name)) is not None}
        hf_model.generation_config = GenerationConfig()  # transformers would mix its own into what is passed

    def answers(
        self, samples: Sequence[Sample], batch_size: int, max_new_tokens: int, seed: int = 0, **sampling: Any
    ) -> Iterator[str]:
        """One answer per sample, to all its turns but a last answer, if it has one; `batch_size` at a time.

        sampling: options of transformers' `generate`, see `SAMPLING`; greedy where none are given. Raises DataError.
        """
        for outcome in self.outcomes(samples, batch_size, max_new_tokens, seed, **sampling):
            if isinstance(outcome, DataError):
                raise outcome
            yield outcome

    def outcomes(
        self, samples: Sequence[Sample], batch_size: int, max_new_tokens: int, seed: int = 0, **sampling: Any
    ) -> Iterator[str | DataError]:
        """As `answers`, with the error of a sample that cannot be asked in its place.

        The next batch is decoded while one is answered. `seed` and the samples of a batch draw its sampled answers.
        """
        chunks = iter([samples[start : start + batch_size] for start in range(0, len(samples), batch_size)])
        with ThreadPoolExecutor(max_workers=1) as background:
            following = next(chunks, None)
            waiting = background.submit(self._prepare, following or [])
            while following:
                asked, (batch, errors) = following, waiting.result()
                following = next(chunks, None)
                waiting = background.submit(self._prepare, following or [])
                with _seeded(seed, asked):
                    texts = iter(self._generate(batch, max_new_tokens, **sampling))
                for error in errors:
                    yield error or next(texts)

    def losses(self, samples: Sequence[Sample], batch_size: int) -> Iterator[tuple[float, int]]:
        """Of each sample the summed cross-entropy of its answers, and how many tokens they are; `batch_size` to a pack.

        Raises DataError.
        """
        for start in range(0, len(samples), batch_size):
            batch, errors = self._prepare(samples[start : start + batch_size], self._encoder.encode)
            if error := next(filter(None, errors), None):
                raise error
            assert batch
            with torch.no_grad():
                hidden = self._forward.hidden_states(self._forward.placed(batch))
                for first, last in pairwise(batch.cu_seqlens.tolist()):
                    places = batch.supervised[(batch.supervised >= first) & (batch.supervised < last)]
                    targets = batch.labels[places].to(hidden.device)
                    yield float(self._forward.loss(hidden[places - 1], targets)), len(places)

    def stream(
        self, sample: Sample, tell: Callable[[str], None], max_new_tokens: int, seed: int = 0, **sampling: Any
    ) -> str:
        """The answer to one sample, told piece by piece as its tokens come; beams cannot be. Raises DataError."""
        try:
            batch, [error] = self._prepare([sample])
        except KeyboardInterrupt:
            self._videos.close()  # what it was asked would answer the next question
            raise
        if error:
            raise error
        with _seeded(seed, [sample]):
            [text] = self._generate(
                batch, max_new_tokens, streamer=TextStreamer(self._decode, self._ends, tell), **sampling
            )
        return text

    def _generate(self, batch: PackedBatch | None, max_new_tokens: int, **options: Any) -> list[str]:
        if batch is None:
            return []
        ids = generate(self._forward, self._forward.placed(batch), max_new_tokens, self._ends, self._pad, **options)
        return [self._decode(answer) for answer in ids]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _prepare(self, samples: Sequence[Sample], encode: Encode | None = None) -> Batch:
        """`encode`: `encode_prompt` unless another is given."""
        encoded, tiles, errors = [], [], list[DataError | None]()
        for sample in samples:
            try:
                layouts = self._media.layouts(sample)
                one = (encode or self._encoder.encode_prompt)(sample, layouts)
                tiles.append(self._media.tiles(sample, layouts))
            except DataError as error:
                errors.append(error)
                continue
            encoded.append(one)
            errors.append(None)
        return collate(encoded, tiles, self._forward.geometry.tile_size) if encoded else None, errors


class TextStreamer:
    """transformers' streamer: the ids of one answer, as they come, to the text that each adds.

    A character whose bytes are not all there waits for them, and space for what follows it: the pieces join to the
    stripped answer.
    """

    def __init__(self, decode: Callable[[list[int]], str], ends: Sequence[int], tell: Callable[[str], None]):
        self._decode, self._ends, self._tell = decode, ends, tell
        self._ids: list[int] | None = None
        self._told = 0

    def put(self, ids: torch.Tensor) -> None:
        """The prompt first, then one id after the other."""
        if self._ids is None:
            self._ids = []
        elif int(ids) not in self._ends:
            self._ids.append(int(ids))
            text = self._decode(self._ids)
            if not text.endswith("\ufffd"):
                self._add(text)

    def end(self) -> None:
        self._add(self._decode(self._ids or []))

    def _add(self, text: str) -> None:
        if new := text[self._told :]:
            self._tell(new)
            self._told = len(text)


@contextmanager
def _seeded(seed: int, samples: Sequence[Sample]) -> Iterator[None]:
    """Random numbers that depend on the seed and these samples alone; the state outside is left as it was."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(zlib.crc32(repr((seed, [sample.name for sample in samples])).encode()))
        yield


def _refuse_offload(hf_model: Any) -> None:
    """An adapter is put beside weights that are there."""
    if any(parameter.is_meta for parameter in hf_model.parameters()):
        problem = "the model does not fit its devices, and an adapter cannot join weights that are kept on host or disk"
        raise ConfigError.one("adapter", problem, "merge it first, set load_in=4bit, or give more devices")


def with_media_of(sample: Sample, other: Sample) -> Sample:
    """`sample`'s question about `other`'s images and videos."""
    return replace(sample, images=other.images, videos=other.videos)
