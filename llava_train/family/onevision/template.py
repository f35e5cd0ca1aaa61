"""The text rules of a conversation: which pieces of text a sample becomes, and which of them are learned.

Enters: turns as (role, text), role one of system, human, gpt, and given, an answer that is not learned. Leaves:
`Piece`s in order, for the encoder to turn into ids and labels in one pass; and the Jinja chat template by which an
exported checkpoint renders the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG

DEFAULT_SYSTEM = "You are a helpful assistant."
VICUNA_SYSTEM = (  # LLaVA-NeXT, llava/conversation.py, conv_vicuna_v1, commit b42941c
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CAPTION_NOISE = "QA_GT_caption_based_noisy"  # left in some published records; LLaVA-NeXT, preprocess_multimodal

MediumKind = Literal["image", "video"]
NamedTemplate = Literal["plain", "qwen", "vicuna"]
TemplateName = Literal["plain", "qwen", "vicuna", "checkpoint"]
TagPolicy = Literal["front", "keep"]
LabelRule = Literal["clean", "original"]
TurnText = tuple[str, str]  # role, text

_TAGS = re.compile(f"({IMAGE_TAG}|{VIDEO_TAG})")
ROLE_NAMES = {"system": "system", "human": "user", "gpt": "assistant", "given": "assistant"}
ANSWERS = ("gpt", "given")


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


def media_tags(num_images: int, num_videos: int) -> dict[str, MediumKind]:
    """What each tag denotes in a sample: nothing without media; with videos alone either tag is a video."""
    if not num_images and not num_videos:
        return {}
    return {IMAGE_TAG: "image" if num_images else "video", VIDEO_TAG: "video"}


def media_order(turns: Iterable[TurnText], num_images: int, num_videos: int) -> list[tuple[MediumKind, int]]:
    """Media in reading order as (kind, index among its kind). Raises TemplateError unless each tag has its medium.

    Worked case: `<video>\\nand <image>`, one image, one video -> [("video", 0), ("image", 0)].
    """
    tags = media_tags(num_images, num_videos)
    order: list[tuple[MediumKind, int]] = []
    counts: dict[MediumKind, int] = {"image": 0, "video": 0}
    if tags:
        for _, text in turns:
            for tag in _TAGS.findall(text):
                kind = tags[tag]
                order.append((kind, counts[kind]))
                counts[kind] += 1
    if (counts["image"], counts["video"]) != (num_images, num_videos):
        found = f"{counts['image']} image and {counts['video']} video tags"
        raise TemplateError("tag/media mismatch", f"{found} for {num_images} images and {num_videos} videos")
    return order


def normalise_tags(text: str, tag_policy: TagPolicy) -> str:
    """The text of a turn of a sample with media, as it is trained on.

    front: LLaVA-NeXT's preprocess_multimodal (llava/train/train.py, commit b42941c): a turn's only tag moves to its
    front, followed by a newline, and the rest is stripped. keep: as written.
    """
    if tag_policy == "keep":
        return text
    tags = _TAGS.findall(text)
    if len(tags) == 1 and not text.startswith(tags[0]):
        text = f"{tags[0]}\n{text.replace(tags[0], '').strip()}".strip()
    return text.replace(CAPTION_NOISE, "")


def rendered_by_template(turns: Iterable[TurnText], tags: dict[str, MediumKind], tag_policy: TagPolicy) -> bool:
    """Whether some chat message makes `chat_template` render every turn as it is trained on.

    Not so: a tag within a line, and a tag that is ordinary text (a tokenizer reads it as a placeholder).
    """
    if not tags:
        return not any(_TAGS.search(text) for _, text in turns)
    return all(_is_rendered(normalise_tags(text, tag_policy), tag_policy) for _, text in turns)


def _is_rendered(text: str, tag_policy: TagPolicy) -> bool:
    first, *parts = _TAGS.split(text)
    tags, texts = parts[0::2], parts[1::2]
    if len(tags) == 1 and tag_policy == "front":
        rest = texts[0].strip()
        return not first and texts[0] == (f"\n{rest}" if rest else "")
    return all(after.startswith("\n") for after in texts)


def split_at_tags(text: str, supervised: bool, tags: dict[str, MediumKind]) -> list[Piece]:
    if not tags:
        return [Piece(text, supervised)]
    parts = _TAGS.split(text)
    return [Piece("", False, tags[part]) if part in tags else Piece(part, supervised) for part in parts if part]


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


def unanswered(turns: Sequence[TurnText]) -> Sequence[TurnText]:
    return turns[:-1] if turns[-1][0] in ANSWERS else turns


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
        learned, is_answer = role == "gpt", role in ANSWERS
        header = Piece("ASSISTANT:" if is_answer else "USER:", False)
        if not text:
            return [header]
        pieces = [header, Piece(" ", learned), *split_at_tags(text, learned, tags)]
        for i, (before, piece) in enumerate(pairwise(pieces), start=1):
            if before.medium and piece.text and not piece.text.startswith(" "):
                pieces[i] = Piece(f" {piece.text}", learned)
        return [*pieces, Piece("</s>" if is_answer else " ", learned, ends_answer=learned)]


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


def make_template(name: NamedTemplate, label_rule: LabelRule, tag_policy: TagPolicy) -> Template:
    """The template of a stage. `label_rule` matters to qwen alone."""
    if name == "qwen":
        return QwenTemplate(label_rule, tag_policy)
    return VicunaTemplate(tag_policy) if name == "vicuna" else PlainTemplate(tag_policy)


def chat_name(name: TemplateName) -> TemplateName:
    """The template in which a checkpoint of such a stage is asked: plain knows no questions, so ChatML."""
    return "qwen" if name == "plain" else name


def chat_template(name: NamedTemplate, tag_policy: TagPolicy) -> str:
    """Jinja source for an exported checkpoint: messages as its template has turns, answers marked as generated.

    `content` is a string, taken as written, or parts {type: image}, {type: video}, {type: text, text}. front: the only
    medium of a message comes first, a newline after it, the joined text stripped. Else media keep their place, each
    followed by a newline unless the text after it begins with one.
    """
    messages = _VICUNA_MESSAGES if chat_name(name) == "vicuna" else _QWEN_MESSAGES
    return (_RENDER + messages).replace("FRONT", "true" if tag_policy == "front" else "false")


_RENDER = r"""
{%- macro render(content) -%}
  {%- set ns = namespace(num_media=0, tag='', words='', text='', open=false) -%}
  {%- for part in content -%}
    {%- if part['type'] == 'text' -%}
      {%- set words = part['text'] -%}
      {%- if ns.open and words -%}
        {%- set ns.text = ns.text + ('' if words.startswith('\n') else '\n') -%}
        {%- set ns.open = false -%}
      {%- endif -%}
      {%- set ns.words = ns.words + words -%}
      {%- set ns.text = ns.text + words -%}
    {%- elif part['type'] in ['image', 'video'] -%}
      {%- set ns.num_media = ns.num_media + 1 -%}
      {%- set ns.tag = '<' + part['type'] + '>' -%}
      {%- set ns.text = ns.text + ('\n' if ns.open else '') + ns.tag -%}
      {%- set ns.open = true -%}
    {%- else -%}
      {{- raise_exception('content parts are text, image or video, not ' + part['type']) -}}
    {%- endif -%}
  {%- endfor -%}
  {%- if FRONT and ns.num_media == 1 -%}
    {%- set words = ns.words | trim -%}
    {{- ns.tag + ('\n' + words if words else '') -}}
  {%- else -%}
    {{- ns.text + ('\n' if ns.open else '') -}}
  {%- endif -%}
{%- endmacro -%}
""".lstrip()

_QWEN_MESSAGES = r"""
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

_VICUNA_MESSAGES = r"""
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
