"""The `plain` template: captions without a question, for the first stage."""

from __future__ import annotations

from collections.abc import Sequence

from llava_train.text.base import MediumKind, Piece, TagPolicy, TemplateError, TurnText
from llava_train.text.media_tags import normalise_tags, split_at_tags


class PlainTemplate:
    """Caption alone: the media of turn 1 (its words are dropped), then turn 2 and a newline, both supervised."""

    constants: tuple[str, ...] = ()
    always_supervised: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ()
    joined = False
    end = ""

    def __init__(self, tag_policy: TagPolicy):
        self._tag_policy: TagPolicy = tag_policy

    def pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        if [role for role, _ in turns] != ["human", "gpt"]:
            found = len(turns) if len(turns) != 2 else " and ".join(role for role, _ in turns)
            detail = f"the plain template takes one human and one gpt turn, not {found}"
            raise TemplateError("not a caption", detail)
        caption = normalise_tags(turns[1][1], self._tag_policy)
        return [*self.prompt_pieces(turns, tags), *split_at_tags(caption + "\n", True, tags)]

    def prompt_pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        media = [piece for piece in split_at_tags(turns[0][1], False, tags) if piece.medium]
        if not media:
            raise TemplateError("not a caption", "the plain template needs an image or video, with its tag in turn 1")
        return media
