"""The `vicuna` template: LLaVA-1.5's conversation `v1`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from llava_train.text.base import ANSWER_ROLES, MediumKind, Piece, TagPolicy, TurnText, unanswered
from llava_train.text.media_tags import normalise_tags, split_at_tags

VICUNA_SYSTEM = (  # LLaVA-NeXT, llava/conversation.py, conv_vicuna_v1, commit b42941c
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class VicunaTemplate:
    """LLaVA-1.5's `v1`: `<s> SYSTEM USER: q ASSISTANT: a</s>USER: q2 ASSISTANT: a2</s>`, no space after `</s>`.

    Answers and their `</s>` are supervised. An empty turn is its header alone; an empty answer teaches nothing
    (LLaVA-NeXT, llava/conversation.py, SeparatorStyle.TWO, commit b42941c).
    SentencePiece puts a space before a text; the original tokenises the texts between media one by one. So a space is
    written here after `<s>` and after a medium, and the rendered conversation, tokenised at once, gives the same ids.
    Worked case, an image and `What?`, answered `A cat`, between the media one text each, S = supervised:
    `<s> SYSTEM ` `USER: ` image ` \\nWhat? ` `ASSISTANT:` ` A cat`S `</s>`S.
    """

    constants: tuple[str, ...] = ()
    always_supervised: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ("<s>", "</s>")
    joined = True
    end = "</s>"

    def __init__(self, tag_policy: TagPolicy):
        self._tag_policy: TagPolicy = tag_policy

    def pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        if turns[0][0] != "system":
            turns = [("system", VICUNA_SYSTEM), *turns]
        pieces = split_at_tags(f"<s> {turns[0][1]} ", False, tags)
        for role, text in turns[1:]:
            if tags:
                text = normalise_tags(text, self._tag_policy)
            pieces += self._turn(role, text, tags)
        return pieces

    def prompt_pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        """The conversation without its last answer, open for one."""
        return [*self.pieces(unanswered(turns), tags), *self._turn("gpt", "", {})]

    def _turn(self, role: str, text: str, tags: dict[str, MediumKind]) -> list[Piece]:
        learned, is_answer = role == "gpt", role in ANSWER_ROLES
        header = Piece("ASSISTANT:" if is_answer else "USER:", False)
        if not text:
            return [header]
        pieces = [header, Piece(" ", learned), *split_at_tags(text, learned, tags)]
        for i, (before, piece) in enumerate(pairwise(pieces), start=1):
            if before.medium and piece.text and not piece.text.startswith(" "):
                pieces[i] = Piece(f" {piece.text}", learned)
        return [*pieces, Piece("</s>" if is_answer else " ", learned, ends_answer=learned)]


VICUNA_MESSAGES = r"""
{%- if messages[0]['role'] != 'system' -%}
  {{- "<s> SYSTEM " -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set text = message['content'] if message['content'] is string else render(message['content']) -%}
  {%- set text = text.replace('<image>\n', '<image> \n').replace('<video>\n', '<video> \n') -%}
  {%- if message['role'] == 'system' -%}
    {{- '<s> ' + text + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' + text + '</s>' if text else '' -}}{%- endgeneration -%}
  {%- else -%}
    {{- 'USER: ' + text + ' ' if text else 'USER:' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'ASSISTANT:' -}}
{%- endif -%}
""".strip().replace("SYSTEM", VICUNA_SYSTEM)
