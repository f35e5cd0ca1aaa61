"""`Sample`: one record of a data set, checked in form, with its media as paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from llava_train.config.errors import DataError
from llava_train.family.onevision.template import MediumKind, TemplateError, media_order

Role = Literal["system", "human", "gpt"]


class Turn(NamedTuple):
    role: Role
    text: str


class Medium(NamedTuple):
    kind: MediumKind
    path: Path


@dataclass(frozen=True)
class Sample:
    """Turns, at most the first of them `system`, with the paths of the media that their tags denote."""

    id: str
    source: str
    turns: Sequence[Turn]
    images: Sequence[Path] = ()
    videos: Sequence[Path] = ()
    record: str = ""  # where it stands in its source, for messages

    @property
    def name(self) -> str:
        return f"{self.source}/{self.id}"

    def media(self) -> list[Medium]:
        """Images and videos in the reading order of their tags. Raises DataError unless each tag has its medium."""
        paths = {"image": self.images, "video": self.videos}
        try:
            order = media_order(self.turns, len(self.images), len(self.videos))
        except TemplateError as error:
            raise self.error(error.reason, error.detail) from error
        return [Medium(kind, paths[kind][index]) for kind, index in order]

    def error(self, reason: str, detail: str = "") -> DataError:
        """A DataError that names this sample."""
        return DataError(self.source, self.record, reason, detail)
