"""The `qwen` template: ChatML, in which OneVision was trained."""

from __future__ import annotations

from collections.abc import Sequence

from llava_train.text.base import ROLE_NAMES, LabelRule, MediumKind, Piece, TagPolicy, TurnText, unanswered
from llava_train.text.media_tags import normalise_tags, split_at_tags

DEFAULT_SYSTEM = "You are a helpful assistant."


class QwenTemplate:
    """ChatML. Header, content, `<|im_end|>` and newline are pieces of their own, as they are when a model answers.

    clean: answers and their `<|im_end|>` are supervised. original: whole assistant messages, and every newline,
    `<|im_start|>` and `<|im_end|>` anywhere (LLaVA-NeXT, preprocess_qwen, commit b42941c).
    Worked case, clean, one piece per backtick pair, S = supervised:
    `<|im_start|>user\\n` `Hi` `<|im_end|>` `\\n` `<|im_start|>assistant\\n` `Yes`S `<|im_end|>`S `\\n`.
    """

    special_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    joined = False
    end = "<|im_end|>"

    def __init__(self, label_rule: LabelRule, tag_policy: TagPolicy):
        self._whole_answers = label_rule == "original"
        self._tag_policy: TagPolicy = tag_policy
        always = ("\n", "<|im_start|>", "<|im_end|>") if self._whole_answers else ()
        self.always_supervised: tuple[str, ...] = always
        self.constants: tuple[str, ...] = (DEFAULT_SYSTEM, "<|im_end|>", "\n", *map(_header, ROLE_NAMES))

    def pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        if turns[0][0] != "system":
            turns = [("system", DEFAULT_SYSTEM), *turns]
        pieces = []
        for role, text in turns:
            learned = role == "gpt"
            if tags:
                text = normalise_tags(text, self._tag_policy)
            pieces.append(Piece(_header(role), learned and self._whole_answers))
            pieces += split_at_tags(text, learned, tags)
            pieces += [Piece("<|im_end|>", learned), Piece("\n", learned and self._whole_answers, ends_answer=learned)]
        return pieces

    def prompt_pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        """The conversation without its last answer, open for one."""
        return [*self.pieces(unanswered(turns), tags), Piece(_header("gpt"), False)]


def _header(role: str) -> str:
    return f"<|im_start|>{ROLE_NAMES[role]}\n"


QWEN_MESSAGES = r"""
{%- if messages[0]['role'] != 'system' -%}
  {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\n' -}}
  {%- set text = message['content'] if message['content'] is string else render(message['content']) -%}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{- text + '<|im_end|>' -}}{%- endgeneration -%}{{- '\n' -}}
  {%- else -%}
    {{- text + '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()
