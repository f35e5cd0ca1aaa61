"""The tags that stand for media in the texts of a record."""

from __future__ import annotations

from typing import Literal, get_args

MediumKind = Literal["image", "video"]
MEDIUM_KINDS: tuple[MediumKind, ...] = get_args(MediumKind)
IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
TAGS: dict[MediumKind, str] = {"image": IMAGE_TAG, "video": VIDEO_TAG}
