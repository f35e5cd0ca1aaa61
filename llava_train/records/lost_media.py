"""Records that have lost their images or videos: told from texts that only speak of `<image>`.

Enters: a record whose `image` and `video` hold nothing. Leaves: BadRecord where it was about a picture or film.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llava_train.records.fields import RECORD_KEYS
from llava_train.records.record import BadRecord

MEDIA_KEYS = ("image", "video")
_NOT_MEDIA = {*MEDIA_KEYS, "conversations", "messages", "id", "answers", "choices", "type", "prompt", *RECORD_KEYS}
_WORDS = {"image", "img", "picture", "pic", "photo", "video", "clip", "frame", "media", "pixel"}
_SUFFIX = re.compile(
    r"\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|avif|heic|svg|dcm|mp4|mkv|webm|avi|mov|m4v|mpe?g|flv|wmv|ogv|ts)(\?|$)", re.I
)
_ENCODED = re.compile(r"data:(image|video)/|/9j/|iVBORw0KGgo|R0lGOD|UklGR")  # how base64 of an image begins
_WRITTEN = re.compile(r"<(img|image|video)>[^<>\n]+</\1>")  # Qwen-VL's: a path within the text
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TAG = re.compile("<image>|<video>")
_STANDING = re.compile(r"^[ \t]*(?:<image>|<video>)|(?:<image>|<video>)[ \t]*$", re.MULTILINE)


def names_media(key: str) -> bool:
    """Whether a key or column is named like one of images or videos: `imgs`, `image_path`, `Image`, `videoFile`."""
    return bool(_words(key) & _WORDS)


def refuse_lost(record: dict[str, Any], turns: Sequence[tuple[str, str]]) -> None:
    """turns: role and text of each. Raises BadRecord where the record holds neither image nor video, and

    another key seems to; or `image` or `video` is there, empty, and a tag begins or ends a line of a human turn.
    """
    if any(record.get(key) for key in MEDIA_KEYS):
        return  # whether each tag has its medium is another question: see Sample.media
    has_tag = any(_TAG.search(text) for _, text in turns)
    said = [key for key in MEDIA_KEYS if key in record]
    for key, value in record.items():
        if key not in _NOT_MEDIA and _seems_media(key, value, has_tag, bool(said)):
            raise BadRecord(
                f"has no 'image' and no 'video', but key {key!r} seems to hold one: name it 'image' or 'video'"
            )
    for role, text in turns:
        if role == "human" and (found := _WRITTEN.search(text)):
            told = f"{found.group()[:80]!r} in a human turn names one"
            raise BadRecord(f"has no 'image' and no 'video', but {told}: write <image>, and its path as 'image'")
    if said and (tag := standing_tag(turns)):
        told = f"{tag} stands in a human turn, and nothing in {' or '.join(map(repr, said))}"
        raise BadRecord(f"{told}: give the path, or take the tag out")


def standing_tag(turns: Sequence[tuple[str, str]]) -> str:
    """The first tag that begins or ends a line of a human turn, empty where none does."""
    found = (_STANDING.search(text) for role, text in turns if role == "human")
    return next((tag.group().strip() for tag in found if tag), "")


def _seems_media(key: str, value: Any, has_tag: bool, said: bool) -> bool:
    """A tag makes more of it: without one a text may well name a picture that it has nothing to do with."""
    if has_tag:
        return _is_medium(value) or (names_media(key) and isinstance(value, str | list | dict) and bool(value))
    return not said and _is_medium(value)


def _is_medium(value: Any) -> bool:
    """A path of an image or video, or its bytes; a list or mapping that holds one."""
    if isinstance(value, str):
        return bool(_SUFFIX.search(value) or _ENCODED.match(value))
    if isinstance(value, dict):
        return bool(value.get("bytes")) or any(map(_is_medium, value.values()))
    return isinstance(value, list) and any(map(_is_medium, value))


def _words(key: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall("[a-z]+", _CAMEL.sub("_", key).lower())}
