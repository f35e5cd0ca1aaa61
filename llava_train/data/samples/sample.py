"""`Sample`: one record of a data set, checked in form, with the files of its media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llava_train.records.media_file import MediaFile
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.errors import DataError
from llava_train.text.base import MediumKind, TemplateError
from llava_train.text.media_tags import media_order

Role = Literal["system", "human", "gpt", "given"]  # given: an answer that is read and not learned


class Turn(NamedTuple):
    role: Role
    text: str


class Medium(NamedTuple):
    kind: MediumKind
    file: MediaFile


@dataclass(frozen=True)
class Sample:
    """Turns, at most the first of them `system`, with the files of the media that their tags denote."""

    id: str
    source: str
    turns: Sequence[Turn]
    images: Sequence[MediaFile] = ()
    videos: Sequence[MediaFile] = ()
    record: str = ""  # where it stands in its source, for messages
    sizes: Sequence[tuple[int, int]] = ()  # (height, width) of each image as the record states them, or none
    lost_opening: bool = False  # the record begins with an answer to nothing, which is left out

    @property
    def is_tagged_text(self) -> bool:
        """Whether it has no media and a tag, which stays text."""
        has_media = bool(self.images or self.videos)
        return not has_media and any(IMAGE_TAG in turn.text or VIDEO_TAG in turn.text for turn in self.turns)

    @property
    def name(self) -> str:
        return f"{self.source}/{self.id}"

    def media(self) -> list[Medium]:
        """Images and videos in the reading order of their tags. Raises DataError unless each tag has its medium."""
        files = {"image": self.images, "video": self.videos}
        try:
            order = media_order(self.turns, len(self.images), len(self.videos))
        except TemplateError as error:
            raise self.error(error.reason, error.detail) from error
        return [Medium(kind, files[kind][index]) for kind, index in order]

    def error(self, reason: str, detail: str = "") -> DataError:
        """A DataError that names this sample."""
        return DataError(self.source, self.record, reason, detail)
