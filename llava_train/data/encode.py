"""Ids and labels of a sample, made in one pass over the pieces of its text.

Enters: a `Sample` and the layouts of its media in reading order. Leaves: `EncodedSample`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from llava_train.batch.packed import IGNORE_INDEX, VisualLayout
from llava_train.data.sample import Sample
from llava_train.family.onevision.template import (
    IMAGE_TAG,
    VIDEO_TAG,
    MediumKind,
    Piece,
    Template,
    TemplateError,
    media_tags,
)

_TAGS: dict[MediumKind, str] = {"image": IMAGE_TAG, "video": VIDEO_TAG}
TOO_LONG, NOTHING_SUPERVISED = "longer than max_length", "nothing supervised"


@dataclass(frozen=True)
class EncodedSample:
    """input_ids, labels int32 [L], labels under input_ids and IGNORE_INDEX where not supervised; visual_positions int32
    [V] into them, in the order of `visuals`, which is the reading order."""

    id: str
    source: str
    record: str
    input_ids: np.ndarray
    labels: np.ndarray
    visual_positions: np.ndarray
    visuals: tuple[VisualLayout, ...]

    @property
    def num_supervised(self) -> int:
        """Supervised tokens that a loss can see: the first of a sample has no predecessor."""
        return int((self.labels[1:] != IGNORE_INDEX).sum())

    @property
    def num_tiles(self) -> int:
        return sum(layout.num_tiles for layout in self.visuals)


class Encoder:
    """Tokenises by a template. `tokenizer` must know `<image>` and `<video>` (see `prepare_tokenizer`)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_token_id: int,
        video_token_id: int,
        template: Template,
        max_length: int,
    ):
        self._tokenizer = text_tokenizer(tokenizer)
        self._tag_tokenizer = text_tokenizer(tokenizer, reads_tags=True)
        self._bos = tokenizer.bos_token or ""
        self.placeholders: dict[MediumKind, int] = {"image": image_token_id, "video": video_token_id}
        self.template = template
        self.max_length = max_length
        self._constants = {text: self._encode(text) for text in template.constants}
        self._always = frozenset(i for text in template.always_supervised for i in self._encode(text))

    def encode(self, sample: Sample, layouts: Sequence[VisualLayout]) -> EncodedSample:
        """Ids and labels of the whole sample. Raises DataError: bad for the template, too long, nothing supervised."""
        encoded = self._join(sample, self._pieces(sample, self.template.pieces), layouts)
        length = len(encoded.input_ids)
        if length > self.max_length:
            raise sample.error(TOO_LONG, f"{length} tokens, max_length {self.max_length}")
        if not encoded.num_supervised:
            raise sample.error(NOTHING_SUPERVISED)
        return encoded

    def encode_prompt(self, sample: Sample, layouts: Sequence[VisualLayout]) -> EncodedSample:
        """The sample without its last answer, up to and including the header of the answer. Raises DataError."""
        return self._join(sample, self._pieces(sample, self.template.prompt_pieces), layouts)

    def _pieces(self, sample: Sample, cut) -> list[Piece]:
        try:
            return cut(sample.turns, media_tags(len(sample.images), len(sample.videos)))
        except TemplateError as error:
            raise sample.error(error.reason, error.detail) from error

    def _join(self, sample: Sample, pieces: list[Piece], layouts: Sequence[VisualLayout]) -> EncodedSample:
        """Worked case, a video of 2 tokens (id 9), then `Hi` supervised: ids [9 9 13048], labels [-100 -100 13048]."""
        ids: list[int] = []
        labels: list[int] = []
        positions: list[range] = []
        remaining = iter(layouts)
        for span in self._spans(pieces):
            if isinstance(span, str):
                if (layout := next(remaining, None)) is None:
                    raise sample.error("tag/media mismatch", f"more tags than the {len(layouts)} media")
                assert (layout.kind == "video") == (span == "video"), (sample.name, layout)
                positions.append(range(len(ids), len(ids) + layout.num_tokens))
                ids += [self.placeholders[span]] * layout.num_tokens
                labels += [IGNORE_INDEX] * layout.num_tokens
            else:
                ids += span[0]
                labels += span[1]
        if next(remaining, None) is not None:
            raise sample.error("tag/media mismatch", f"fewer tags than the {len(layouts)} media")
        return EncodedSample(
            sample.id,
            sample.source,
            sample.record,
            np.array(ids, dtype=np.int32),
            np.array(labels, dtype=np.int32),
            np.concatenate(positions).astype(np.int32) if positions else np.zeros(0, dtype=np.int32),
            tuple(layouts),
        )

    def _spans(self, pieces: list[Piece]) -> Iterator[MediumKind | tuple[list[int], list[int]]]:
        """The media of the pieces, and ids and labels of the texts between them."""
        if self.template.joined:
            yield from self._joined_spans(pieces)
            return
        for piece in pieces:
            if piece.medium:
                yield piece.medium
                continue
            new = self._constants.get(piece.text) or self._encode(piece.text)
            yield new, (new if piece.supervised else self._unsupervised(new))

    def _joined_spans(self, pieces: list[Piece]) -> Iterator[MediumKind | tuple[list[int], list[int]]]:
        """The pieces as one text, media as tags. A token is supervised where the piece of its first character is.

        Special tokens come before and after as a processor adds them: not to a text that begins with the first one.
        """
        texts = [_TAGS[piece.medium] if piece.medium else piece.text for piece in pieces]
        text, media = "".join(texts), [piece.medium for piece in pieces if piece.medium]
        tokenizer = self._tag_tokenizer if media else self._tokenizer  # without media a tag is ordinary text
        encoding = tokenizer.encode(text, add_special_tokens=not (self._bos and text.startswith(self._bos)))
        ends = list(accumulate(map(len, texts)))
        kinds = {i: kind for kind, i in self.placeholders.items()} if media else {}
        ids, labels = list[int](), list[int]()
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if i in kinds:
                yield ids, labels
                yield kinds[i]
                ids, labels = [], []
            else:
                is_learned = stop > start and pieces[bisect_right(ends, start)].supervised
                ids.append(i)
                labels.append(i if is_learned else IGNORE_INDEX)
        yield ids, labels

    def _unsupervised(self, ids: list[int]) -> list[int]:
        return [i if i in self._always else IGNORE_INDEX for i in ids] if self._always else [IGNORE_INDEX] * len(ids)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


@lru_cache(maxsize=4)
def text_tokenizer(tokenizer: PreTrainedTokenizerBase, reads_tags: bool = False) -> Tokenizer:
    """A copy of the backend that reads `<image>` and `<video>` as ordinary text; other special tokens stay special.

    reads_tags: they stay special as well.
    """
    copy = json.loads(tokenizer.backend_tokenizer.to_str())
    if not reads_tags:
        tags = _TAGS.values()
        copy["added_tokens"] = [token for token in copy["added_tokens"] if token["content"] not in tags]
    backend = Tokenizer.from_str(json.dumps(copy))
    backend.no_truncation()
    backend.no_padding()
    return backend
