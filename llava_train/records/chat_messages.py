"""Conversations in the chat-messages form, with typed parts, as the records that LLaVA's own form has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llava_train.records.record import BadRecord
from llava_train.records.tags import IMAGE_TAG, TAGS, VIDEO_TAG

_TEXT_KEYS = ("from", "value", "role", "content")
_PATH_KEYS = ("path", "url")  # beside the part's own type, which chat templates take as well


def with_one_name(record: dict[str, Any]) -> dict[str, Any]:
    """`images` and `videos` as `image` and `video`, without empty entries. Raises BadRecord where both are given."""
    record = dict(record)
    for kind in TAGS:
        for key in (kind, f"{kind}s"):
            if isinstance(listed := record.get(key), list):
                record[key] = [entry for entry in listed if entry not in (None, "")]
        if f"{kind}s" in record:
            listed = record.pop(f"{kind}s")
            if listed and record.get(kind):
                raise BadRecord(f"has {kind!r} and '{kind}s': leave one of them out")
            record[kind] = listed or record.get(kind)
    return record


def from_messages(record: dict[str, Any], beside: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """A record with `conversations` whose contents are texts.

    `messages` may stand for `conversations`. Parts {type: text, text}, {type: image, image: PATH} and {type: video,
    video: PATH} become one text: each medium a tag in its place, a newline after it as the chat template writes it; the
    paths of the parts, in order, become `image` and `video`. Parts without paths take those that the record lists, or
    those that lie `beside` it, by kind, in order or by the `index` of each. Raises BadRecord, also where a part has
    nothing to take.
    """
    if "messages" in record and "conversations" in record:
        raise BadRecord("has messages and conversations: leave one of them out")
    turns = _read(record.get("conversations", record.get("messages")))
    record = {key: value for key, value in record.items() if key != "messages"} | {"conversations": turns}
    if not isinstance(turns, list) or not any(isinstance(_content(turn), list) for turn in turns):
        return record
    media: dict[str, list[dict[str, Any]]] = {"image": [], "video": []}
    record["conversations"] = [_as_text(turn, media) for turn in turns]
    listed = {kind: record.get(kind) or (beside or {}).get(kind) for kind in media}
    for kind, parts in media.items():
        found = [_path(part, kind) for part in parts]
        if any(found):
            if record.get(kind) or not all(found):
                raise BadRecord(f"give the path of each {kind} in its part, or all of them in {kind!r}")
            record[kind] = found
        elif any(part.get("index") is not None for part in parts):
            _pick(record, kind, [part.get("index") for part in parts], listed[kind])
        elif found and not any(listed.values()):
            told = f"{len(found)} parts of type {kind!r} without a path, and {kind!r} lists none"
            raise BadRecord(f"{told}: give it in the part, as {{'type': {kind!r}, {kind!r}: PATH}}, or there")
    return record


def _read(turns: Any) -> Any:
    """Turns that a table or a database stored as JSON in a text."""
    if not isinstance(turns, str):
        return turns
    try:
        return json.loads(turns)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"conversations are a text that is no JSON ({error}): write a list of turns") from error


def _content(turn: Any) -> Any:
    return turn.get("content", turn.get("value")) if isinstance(turn, dict) else None


def _pick(record: dict[str, Any], kind: str, indices: list[Any], listed: Any) -> None:
    """Puts the media of a kind, with their sizes, in the order in which the parts name them."""
    entries = listed if isinstance(listed, list) else [listed] if listed else []
    if any(type(index) is not int for index in indices) or {*indices} != {*range(len(entries))}:
        told = ", ".join(str(index) for index in indices)
        raise BadRecord(f"parts of type {kind!r} have index {told}, of {len(entries)} in {kind!r}: name each from 0 on")
    record[kind] = [entries[index] for index in indices]
    for key in ("width", "height"):
        if kind == "image" and isinstance(sides := record.get(key), list) and len(sides) == len(entries):
            record[key] = [sides[index] for index in indices]


def _as_text(turn: Any, media: dict[str, list[dict[str, Any]]]) -> Any:
    """Worked case: image, text `What?` -> `<image>\\nWhat?`. The media parts go to `media`, by kind."""
    parts = _content(turn)
    if not isinstance(parts, list):
        return turn
    text, after_medium = "", False
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(words := part.get("text"), str):
            if IMAGE_TAG in words or VIDEO_TAG in words:
                raise BadRecord(f"a text part holds {IMAGE_TAG} or {VIDEO_TAG}: make it a part of its own type")
            if beside := next((key for key in TAGS if part.get(key)), None):
                raise BadRecord(f"a part of type 'text' has {beside!r} as well: make it a part of its own type")
            text += "\n" * (after_medium and bool(words) and not words.startswith("\n")) + words
            after_medium = after_medium and not words
        elif kind in TAGS:
            media[kind].append(part)
            text += "\n" * after_medium + TAGS[kind]
            after_medium = True
        else:
            raise BadRecord(f"a part is of type {kind!r}; known: text with its text, image, video")
    others = {key: value for key, value in turn.items() if key not in _TEXT_KEYS}
    return {**others, "role": turn.get("role", turn.get("from")), "content": text + "\n" * after_medium}


def _path(part: dict[str, Any], kind: str) -> str | None:
    path = next((part[key] for key in (kind, *_PATH_KEYS) if part.get(key) is not None), None)
    if path is not None and not isinstance(path, str):
        raise BadRecord(f"the {kind} of a part is a {type(path).__name__}, not a path")
    return path
