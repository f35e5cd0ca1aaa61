"""Template `checkpoint`: a checkpoint's own chat template, rendered turn by turn, labels by span.

Enters: turns, and the Jinja text that a tokenizer carries; it runs in the sandbox of transformers. Leaves: `Piece`s
whose text, media as their tags, is what the checkpoint's processor renders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError as JinjaError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from llava_train.records.tags import IMAGE_TAG, TAGS, VIDEO_TAG
from llava_train.shared.errors import ConfigError
from llava_train.text.base import (
    ROLE_NAMES,
    LabelRule,
    MediumKind,
    Piece,
    TagPolicy,
    Template,
    TemplateError,
    TemplateName,
    TurnText,
    unanswered,
)
from llava_train.text.media_tags import normalise_tags, split_at_tags
from llava_train.text.named_templates import make_template

_Form = Literal["parts", "text"]  # what a template takes as `content`: a list of parts, or one text
_WORD, _ANSWERS = "probe", ("1", "2")  # written to learn the form of a template
_KINDS = {tag: kind for kind, tag in TAGS.items()}


def stage_template(
    name: TemplateName, label_rule: LabelRule, tag_policy: TagPolicy, tokenizer: PreTrainedTokenizerBase, key: str
) -> Template:
    """The template of that name; `checkpoint` is the one that the tokenizer carries (see `read_chat_template`).

    Raises ConfigError, on `key`, where the checkpoint has no chat template or one by which nothing can be learned.
    """
    if name != "checkpoint":
        return make_template(name, label_rule, tag_policy)
    words = {token.content for token in tokenizer.added_tokens_decoder.values()}
    try:
        jinja = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        return CheckpointTemplate(jinja, tag_policy, tokenizer.special_tokens_map, words)
    except TemplateError as error:
        remedy = "name a template instead, as qwen, or put a chat_template.jinja into the checkpoint's folder"
        raise ConfigError.one(key, f"the checkpoint's chat template: {error}", remedy) from error


def read_chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A checkpoint's chat template as its processor finds it, else as its tokenizer does; empty where it has none."""
    files = ("processor_config.json", "chat_template.json", "chat_template.jinja")
    for name in files:
        if (folder / name).is_file() and (text := (folder / name).read_bytes().decode()):
            found = text if name.endswith(".jinja") else json.loads(text).get("chat_template")
            if found:
                return found
    own = tokenizer.chat_template
    return (own.get("default", "") if isinstance(own, dict) else own) or ""


class CheckpointTemplate:
    """Answers and their end token are supervised: what follows the generation prompt, up to the end token.

    Content is given as parts where the template takes them, each medium at its tag, without the line ends and spaces
    that stand beside a tag in a record: a template writes its own. Where it puts media first, images and videos in one
    turn may come out in another order than their files are read in; such a sample is refused.
    The template must render a conversation as the beginning of each longer one. One exception: the released checkpoints
    write `assistant ` and a newline before an answer that was given, and ask with `assistant` and a newline. An answer
    is trained behind what it is asked with, so only the answers of earlier turns have another space before them.
    """

    constants: tuple[str, ...] = ()
    always_supervised: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ()
    joined = True

    def __init__(
        self, jinja: str, tag_policy: TagPolicy, special_tokens: Mapping[str, Any], added_tokens: Collection[str]
    ):
        """special_tokens: by the names that templates use. added_tokens: texts that a tokenizer keeps whole.

        Raises TemplateError where nothing can be learned by this template.
        """
        if not jinja:
            raise TemplateError("none", "neither its processor nor its tokenizer has one")
        self._jinja, self._tag_policy, self._special_tokens = jinja, tag_policy, special_tokens
        self._forms: dict[str, _Form] = {}
        for role in ("human", "gpt", "system"):
            if form := self._form(role):
                self._forms[role] = form
            elif role != "system":
                reason = self._problem(role)
                raise TemplateError("not understood", f"it does not render what the {ROLE_NAMES[role]} says{reason}")
        self._forms["given"] = self._forms["gpt"]
        self._header, self._tail = self._frame()
        self.end = self._end(added_tokens)
        self._learned_tail = self._tail.index(self.end) + len(self.end)

    def pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        pieces: list[Piece] = []
        done = ""  # rendered so far
        for i, (role, _) in enumerate(turns):
            if role != "gpt":
                continue
            before, asked = self._render(turns[:i], tags), self._render(turns[:i], tags, ask=True)
            after = self._render(turns[: i + 1], tags)
            prompt = _continued(done, before) + _continued(before, asked)
            rest = after[len(asked) :] if after.startswith(asked) else self._after_header(_continued(before, after))
            pieces += [Piece(prompt, False), *self._answer(rest)]
            done = after
        if turns[-1][0] != "gpt":
            pieces.append(Piece(_continued(done, self._render(turns, tags)), False))
        return _with_media(pieces, turns, tags)

    def prompt_pieces(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
        """The conversation without its last answer, open for one: what the processor makes of it."""
        turns = unanswered(turns)
        return _with_media([Piece(self._render(turns, tags, ask=True), False)], turns, tags)

    def renders(self, turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> bool:
        """Whether the processor renders the prompt of every answer exactly as it is trained on."""
        if not tags and any(tag in text for _, text in turns for tag in _KINDS):
            return False  # read as a placeholder there
        text = "".join(TAGS[p.medium] if p.medium else p.text for p in self.pieces(turns, tags))
        asked = (self._render(turns[:i], tags, ask=True) for i, (role, _) in enumerate(turns) if role == "gpt")
        return all(text.startswith(prompt) for prompt in asked)

    def _after_header(self, body: str) -> str:
        if not body.startswith(self._header):
            raise TemplateError("template changes with the turn", f"{body[:40]!r} begins an answer")
        return body[len(self._header) :]

    def _answer(self, text: str) -> list[Piece]:
        """An answer with its tail: what is learned of it, and the rest."""
        if text.endswith(self._tail):
            end = len(text) - len(self._tail) + self._learned_tail
            return [Piece(text[:end], True, ends_answer=end == len(text)), Piece(text[end:], False, ends_answer=True)]
        if text.strip():
            raise TemplateError("template changes with the turn", f"no {self._tail!r} ends {text[-40:]!r}")
        return [Piece(text, False)]

    def _render(self, turns: Sequence[TurnText], tags: dict[str, MediumKind], ask: bool = False) -> str:
        messages = []
        for role, text in turns:
            if role not in self._forms:
                raise TemplateError("no system turns", "the checkpoint's chat template renders none")
            if tags:
                text = normalise_tags(text, self._tag_policy)
            content = _parts(text, tags) if self._forms[role] == "parts" else _text(text, tags)
            messages.append({"role": ROLE_NAMES[role], "content": content})
        return self._rendered(messages, ask)

    def _rendered(self, messages: list[dict[str, Any]], ask: bool = False) -> str:
        try:
            rendered: Any = render_jinja_template(
                [messages], chat_template=self._jinja, add_generation_prompt=ask, **self._special_tokens
            )
        except (JinjaError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateError("refused by the chat template", " ".join(str(error).split())) from error
        return rendered[0][0]

    def _form(self, role: str) -> _Form | None:
        """The form in which a role's content appears in the rendered text; of a user's, with a medium of each kind."""
        parts: list[dict[str, str]] = [{"type": "text", "text": _WORD}]
        if role == "human":
            parts = [{"type": "image"}, {"type": "video"}, *parts]
        forms: dict[_Form, Any] = {"parts": parts, "text": _WORD}
        for form, content in forms.items():
            try:
                text = self._probe(role, content)
            except TemplateError:
                continue
            media = [IMAGE_TAG, VIDEO_TAG] if len(content) == 3 else []
            if text.count(_WORD) == 1 and "'type'" not in text and all(text.count(tag) == 1 for tag in media):
                return form
        return None

    def _probe(self, role: str, content: Any) -> str:
        """One message of that role, in a conversation in which it may stand."""
        message = {"role": ROLE_NAMES[role], "content": content}
        if role == "human":
            return self._rendered([message])
        form = self._forms.get("human", "text")
        user = {"role": "user", "content": [{"type": "text", "text": "hi"}] if form == "parts" else "hi"}
        return self._rendered([user, message] if role == "gpt" else [message, user])

    def _problem(self, role: str) -> str:
        """Why it renders a text of that role in no form, if it says so."""
        try:
            self._probe(role, _WORD)
        except TemplateError as error:
            return f": {error.detail}"
        return ", or no <image> and <video> in it" if role == "human" else ""

    def _frame(self) -> tuple[str, str]:
        """What stands before and after each answer that was given."""
        question = [("human", _WORD)]
        before, asked = self._render(question, {}), self._render(question, {}, ask=True)
        bodies = [_continued(before, self._render([*question, ("gpt", text)], {})) for text in _ANSWERS]
        header = bodies[0][: _num_shared(*bodies)]
        rests = [body[len(header) :] for body in bodies]
        tails = {rest[1:] for rest in rests}
        if len(tails) != 1 or any(rest[:1] != text for rest, text in zip(rests, _ANSWERS, strict=True)):
            raise TemplateError("not understood", f"it renders the answers 1 and 2 as {bodies[0]!r} and {bodies[1]!r}")
        prompt = _continued(before, asked)
        if not prompt:
            raise TemplateError("no generation prompt", "add_generation_prompt adds nothing")
        if not header.startswith(prompt) and header.split() != prompt.split():
            raise TemplateError("another prompt", f"it asks with {prompt!r}, but renders {header!r} before an answer")
        return header, tails.pop()

    def _end(self, added_tokens: Collection[str]) -> str:
        """The first token after an answer that a tokenizer keeps whole: nothing else ends an answer for sure."""
        known = sorted(added_tokens, key=len, reverse=True)
        found = re.search("|".join(map(re.escape, known)), self._tail) if known else None
        if not found:
            raise TemplateError("no end", f"no token of its own ends an answer, only {self._tail!r}")
        return found.group()


def _num_shared(one: str, other: str) -> int:
    """Characters that both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _continued(before: str, after: str) -> str:
    """What `after` has beyond `before`."""
    if not after.startswith(before):
        at = _num_shared(before, after)
        detail = f"it renders {after[at : at + 40]!r} where a shorter conversation has {before[at : at + 40]!r}"
        raise TemplateError("template rewrites earlier turns", f"{detail}; name a template, as template=qwen")
    return after[len(before) :]


def _parts(text: str, tags: dict[str, MediumKind]) -> list[dict[str, str]]:
    """Worked case: `See <image>\\nWhat?` -> text `See `, an image, text `What?`."""
    parts: list[dict[str, str]] = []
    pieces = split_at_tags(text, False, tags)
    for i, piece in enumerate(pieces):
        if piece.medium:
            parts.append({"type": piece.medium})
            continue
        words = piece.text.lstrip() if i else piece.text
        words = words.rstrip("\n") if i + 1 < len(pieces) else words
        if words:
            parts.append({"type": "text", "text": words})
    return parts or [{"type": "text", "text": ""}]


def _text(text: str, tags: dict[str, MediumKind]) -> str:
    return "".join(TAGS[p.medium] if p.medium else p.text for p in split_at_tags(text, False, tags))


def _with_media(pieces: list[Piece], turns: Sequence[TurnText], tags: dict[str, MediumKind]) -> list[Piece]:
    """The pieces with their tags as places of media. Raises TemplateError where these changed their order."""
    if not tags:
        return [piece for piece in pieces if piece.text]
    placed: list[Piece] = []
    for piece in pieces:
        placed += split_at_tags(piece.text, piece.supervised, _KINDS)
        if piece.ends_answer and piece.text:
            placed[-1] = placed[-1]._replace(ends_answer=True)
    written = [part.medium for _, text in turns for part in split_at_tags(text, False, tags) if part.medium]
    rendered = [part.medium for part in placed if part.medium]
    if written != rendered:
        detail = (
            f"the turns have {', '.join(map(str, written))}, the chat template renders {', '.join(map(str, rendered))}"
        )
        raise TemplateError("media in another order", f"{detail}; write the tags in that order, or name a template")
    return placed
