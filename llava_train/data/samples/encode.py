"""Ids and labels of a sample, made in one pass over the pieces of its text.

Enters: a `Sample` and the layouts of its media in reading order. Leaves: `EncodedSample`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from llava_train.batch.packed import IGNORE_INDEX
from llava_train.data.samples.sample import Sample
from llava_train.family.base import VisualLayout
from llava_train.records.tags import TAGS
from llava_train.text.base import MediumKind, Piece, Template, TemplateError
from llava_train.text.media_tags import media_tags

_Span = MediumKind | tuple[list[int], list[int]] | None  # a medium, ids and labels of a text, or the end of an answer
TOO_LONG, NOTHING_SUPERVISED, MISMATCH = "longer than max_length", "nothing supervised", "tag/media mismatch"


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


class MeasuredText(NamedTuple):
    """Tokens of a sample without visual ones. cuts: both counts of it ended after each earlier answer at which it may
    be cut, shortest first: all media before, something supervised left."""

    text_tokens: int
    supervised: int
    cuts: list[tuple[int, int]]


class Encoder:
    """Tokenises by a template. `tokenizer` must know `<image>` and `<video>` (see `prepare_tokenizer`).

    too_long: `cut` ends a sample beyond `max_length` after the last answer that fits; else it is refused.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_token_id: int,
        video_token_id: int,
        template: Template,
        max_length: int,
        too_long: Literal["error", "skip", "cut"] = "error",
    ):
        self._tokenizer = text_tokenizer(tokenizer)
        self._tag_tokenizer = text_tokenizer(tokenizer, reads_tags=True)
        self._bos = tokenizer.bos_token or ""
        self.placeholders: dict[MediumKind, int] = {"image": image_token_id, "video": video_token_id}
        self.template = template
        self.max_length = max_length
        self._cuts = too_long == "cut"
        self._constants = {text: self._encode(text) for text in template.constants}
        self._always = frozenset(i for text in template.always_supervised for i in self._encode(text))

    def encode(self, sample: Sample, layouts: Sequence[VisualLayout]) -> EncodedSample:
        """Ids and labels of the sample. Raises DataError: bad for the template, nothing supervised, too long."""
        encoded, ends = self._join(sample, self._pieces(sample, self.template.pieces), layouts)
        if not encoded.num_supervised:
            raise sample.error(NOTHING_SUPERVISED)
        length = len(encoded.input_ids)
        if length <= self.max_length:
            return encoded
        end = max((end for end in ends if end <= self.max_length), default=0) if self._cuts else 0
        cut = replace(encoded, input_ids=encoded.input_ids[:end], labels=encoded.labels[:end])
        if not cut.num_supervised:
            raise sample.error(TOO_LONG, f"{length} tokens, max_length {self.max_length}")
        return cut

    def measure(self, sample: Sample) -> MeasuredText:
        """What `encode` would count, whatever the layouts and `max_length`. Raises DataError as it does."""
        expected, media = [medium.kind for medium in sample.media()], list[MediumKind]()
        tokens = supervised = 0
        cuts: list[tuple[int, int]] = []
        for span in self._spans(self._pieces(sample, self.template.pieces)):
            if span is None:
                cuts.append((tokens, supervised))
            elif isinstance(span, str):
                media.append(span)
                cuts.clear()
            else:
                ids, labels = span
                supervised += len(labels) - labels.count(IGNORE_INDEX)
                if not (tokens or media) and labels and labels[0] != IGNORE_INDEX:
                    supervised -= 1  # the first of a sample has no predecessor
                tokens += len(ids)
        if media != expected:
            raise sample.error(MISMATCH, f"the template makes {len(media)} tags of them")
        if not supervised:
            raise sample.error(NOTHING_SUPERVISED)
        return MeasuredText(tokens, supervised, [cut for cut in cuts if cut[1] and cut[0] < tokens])

    def encode_prompt(self, sample: Sample, layouts: Sequence[VisualLayout]) -> EncodedSample:
        """The sample without its last answer, up to and including the header of the answer. Raises DataError."""
        return self._join(sample, self._pieces(sample, self.template.prompt_pieces), layouts)[0]

    def _pieces(self, sample: Sample, cut) -> list[Piece]:
        try:
            return cut(sample.turns, media_tags(len(sample.images), len(sample.videos)))
        except TemplateError as error:
            raise sample.error(error.reason, error.detail) from error

    def _join(
        self, sample: Sample, pieces: list[Piece], layouts: Sequence[VisualLayout]
    ) -> tuple[EncodedSample, list[int]]:
        """The sample, and its lengths at the ends of answers behind all media.

        Worked case, a video of 2 tokens (id 9), then `Hi` supervised: ids [9 9 13048], labels [-100 -100 13048].
        """
        ids: list[int] = []
        labels: list[int] = []
        positions: list[range] = []
        ends: list[int] = []
        remaining = iter(layouts)
        for span in self._spans(pieces):
            if span is None:
                ends.append(len(ids))
            elif isinstance(span, str):
                layout = next(remaining, None)
                if layout is None or (layout.kind == "video") != (span == "video"):
                    raise sample.error(MISMATCH, f"not the tags of the {len(layouts)} media")
                positions.append(range(len(ids), len(ids) + layout.num_tokens))
                ids += [self.placeholders[span]] * layout.num_tokens
                labels += [IGNORE_INDEX] * layout.num_tokens
                ends.clear()
            else:
                ids += span[0]
                labels += span[1]
        if next(remaining, None) is not None:
            raise sample.error(MISMATCH, f"fewer tags than the {len(layouts)} media")
        encoded = EncodedSample(
            sample.id,
            sample.source,
            sample.record,
            np.array(ids, dtype=np.int32),
            np.array(labels, dtype=np.int32),
            np.concatenate(positions).astype(np.int32) if positions else np.zeros(0, dtype=np.int32),
            tuple(layouts),
        )
        return encoded, ends

    def _spans(self, pieces: list[Piece]) -> Iterator[_Span]:
        """The media of the pieces, ids and labels of the texts between them, and the ends of answers."""
        if self.template.joined:
            yield from self._joined_spans(pieces)
            return
        for piece in pieces:
            if piece.medium:
                yield piece.medium
            else:
                new = self._constants.get(piece.text) or self._encode(piece.text)
                yield new, (new if piece.supervised else self._unsupervised(new))
            if piece.ends_answer:
                yield None

    def _joined_spans(self, pieces: list[Piece]) -> Iterator[_Span]:
        """The pieces as one text, media as tags. A token belongs to the piece of its first character.

        Special tokens come before and after as a processor adds them: not to a text that begins with the first one.
        """
        texts = [TAGS[piece.medium] if piece.medium else piece.text for piece in pieces]
        text, media = "".join(texts), [piece.medium for piece in pieces if piece.medium]
        tokenizer = self._tag_tokenizer if media else self._tokenizer  # without media a tag is ordinary text
        encoding = tokenizer.encode(text, add_special_tokens=not (self._bos and text.startswith(self._bos)))
        ends = list(accumulate(map(len, texts)))
        answer_ends = iter([end for end, piece in zip(ends, pieces, strict=True) if piece.ends_answer])
        answer_end = next(answer_ends, len(text))
        kinds = {i: kind for kind, i in self.placeholders.items()} if media else {}
        ids, labels = list[int](), list[int]()
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if start >= answer_end:
                yield ids, labels
                yield None
                ids, labels = [], []
                answer_end = next(answer_ends, len(text))
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
        tags = TAGS.values()
        copy["added_tokens"] = [token for token in copy["added_tokens"] if token["content"] not in tags]
    backend = Tokenizer.from_str(json.dumps(copy))
    backend.no_truncation()
    backend.no_padding()
    return backend
