"""The tags that stand for media in the texts of a record."""

from __future__ import annotations

IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
