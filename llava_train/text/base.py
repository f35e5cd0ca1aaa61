"""What every template has: turns in, pieces of text out, some of them learned.

Enters: turns as (role, text), role one of system, human, gpt, and given, an answer that is not learned. Leaves:
`Piece`s in order, for the encoder to turn into ids and labels in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from llava_train.records.tags import MediumKind

NamedTemplate = Literal["plain", "qwen", "vicuna"]
TemplateName = Literal["plain", "qwen", "vicuna", "checkpoint"]
TagPolicy = Literal["front", "keep"]
LabelRule = Literal["clean", "original"]
TurnText = tuple[str, str]  # role, text

ROLE_NAMES = {"system": "system", "human": "user", "gpt": "assistant", "given": "assistant"}
ANSWER_ROLES = ("gpt", "given")


class TemplateError(ValueError):
    """A conversation that the template cannot hold. `reason` is the short countable kind."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class Piece(NamedTuple):
    """Text that is tokenised by itself, unless its template is `joined`; or the place of one medium, without text.

    ends_answer: after it the conversation may end, and what stands before is tokenised the same.
    """

    text: str
    supervised: bool
    medium: MediumKind | None = None
    ends_answer: bool = False


class Template(Protocol):
    """One chat format. `constants` recur in every sample; `always_supervised` are learned wherever they stand.

    special_tokens: those that a tokenizer must have. joined: a sample is tokenised as one text, media as their tags.
    end: the text of the token that ends an answer; empty where none does.
    """

    constants: tuple[str, ...]
    always_supervised: tuple[str, ...]
    special_tokens: tuple[str, ...]
    joined: bool
    end: str

    def pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]: ...

    def prompt_pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]: ...


def unanswered(turns: Sequence[TurnText]) -> Sequence[TurnText]:
    return turns[:-1] if turns[-1][0] in ANSWER_ROLES else turns
