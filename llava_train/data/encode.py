"""Ids and labels of a sample, made in one pass over the pieces of its text.

Enters: a `Sample` and the layouts of its media in reading order. Leaves: `EncodedSample`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby

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
        for piece, *others in self._texts(pieces):
            if piece.medium:
                if (layout := next(remaining, None)) is None:
                    raise sample.error("tag/media mismatch", f"more tags than the {len(layouts)} media")
                assert (layout.kind == "video") == (piece.medium == "video"), (sample.name, layout)
                new = [self.placeholders[piece.medium]] * layout.num_tokens
                positions.append(range(len(ids), len(ids) + len(new)))
                labels += [IGNORE_INDEX] * len(new)
            elif others:
                new, learned = self._encode_joined([piece, *others])
                labels += learned
            else:
                new = self._constants.get(piece.text) or self._encode(piece.text)
                labels += new if piece.supervised else self._unsupervised(new)
            ids += new
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

    def _texts(self, pieces: list[Piece]) -> Iterable[list[Piece]]:
        """The pieces that are tokenised as one text, and each medium by itself."""
        if not self.template.joined:
            return ([piece] for piece in pieces)
        numbered = groupby(enumerate(pieces), key=lambda item: item[0] if item[1].medium else -1)
        return ([piece for _, piece in run] for _, run in numbered)

    def _encode_joined(self, pieces: list[Piece]) -> tuple[list[int], list[int]]:
        """Ids and labels of the pieces as one text. A token is supervised where the piece of its first character is."""
        encoding = self._tokenizer.encode("".join(piece.text for piece in pieces), add_special_tokens=False)
        ends = list(accumulate(len(piece.text) for piece in pieces))
        owners = (pieces[bisect_right(ends, start)] for start, _ in encoding.offsets)
        labels = [i if owner.supervised else IGNORE_INDEX for i, owner in zip(encoding.ids, owners, strict=True)]
        return encoding.ids, labels

    def _unsupervised(self, ids: list[int]) -> list[int]:
        return [i if i in self._always else IGNORE_INDEX for i in ids] if self._always else [IGNORE_INDEX] * len(ids)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


@lru_cache(maxsize=2)
def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the backend that reads `<image>` and `<video>` as ordinary text; other special tokens stay special."""
    copy = json.loads(tokenizer.backend_tokenizer.to_str())
    copy["added_tokens"] = [token for token in copy["added_tokens"] if token["content"] not in (IMAGE_TAG, VIDEO_TAG)]
    backend = Tokenizer.from_str(json.dumps(copy))
    backend.no_truncation()
    backend.no_padding()
    return backend
