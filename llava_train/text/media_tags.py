"""Where media stand in the text of a conversation: their tags, counted, moved to the front, split off."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.text.base import MediumKind, Piece, TagPolicy, TemplateError, TurnText

CAPTION_NOISE = "QA_GT_caption_based_noisy"  # left in some published records; LLaVA-NeXT, preprocess_multimodal
TAG_PATTERN = re.compile(f"({IMAGE_TAG}|{VIDEO_TAG})")


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
            for tag in TAG_PATTERN.findall(text):
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
    tags = TAG_PATTERN.findall(text)
    if len(tags) == 1 and not text.startswith(tags[0]):
        text = f"{tags[0]}\n{text.replace(tags[0], '').strip()}".strip()
    return text.replace(CAPTION_NOISE, "")


def rendered_by_template(turns: Iterable[TurnText], tags: dict[str, MediumKind], tag_policy: TagPolicy) -> bool:
    """Whether some chat message makes `chat_template` render every turn as it is trained on.

    Not so: a tag within a line, and a tag that is ordinary text (a tokenizer reads it as a placeholder).
    """
    if not tags:
        return not any(TAG_PATTERN.search(text) for _, text in turns)
    return all(_is_rendered(normalise_tags(text, tag_policy), tag_policy) for _, text in turns)


def _is_rendered(text: str, tag_policy: TagPolicy) -> bool:
    first, *parts = TAG_PATTERN.split(text)
    tags, texts = parts[0::2], parts[1::2]
    if len(tags) == 1 and tag_policy == "front":
        rest = texts[0].strip()
        return not first and texts[0] == (f"\n{rest}" if rest else "")
    return all(after.startswith("\n") for after in texts)


def split_at_tags(text: str, supervised: bool, tags: dict[str, MediumKind]) -> list[Piece]:
    if not tags:
        return [Piece(text, supervised)]
    parts = TAG_PATTERN.split(text)
    return [Piece("", False, tags[part]) if part in tags else Piece(part, supervised) for part in parts if part]
