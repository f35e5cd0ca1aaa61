"""The ids of `<image>` and `<video>`, as config.json and the tokenizer give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.errors import Fault

DEFAULT_IDS = {IMAGE_TAG: 151646, VIDEO_TAG: 151647}  # of transformers, where config.json names none


def tag_fault(tag: str, found: int | None, config: Mapping[str, Any]) -> Fault | None:
    """Where config.json gives `<image>` or `<video>` another id than the tokenizer, which is `found`."""
    name = index_of(tag)
    if (wanted := config.get(name, DEFAULT_IDS[tag])) == found:
        return None
    problem = f"the tokenizer's {tag} has id {found}, config.json says {name} = {wanted}"
    return Fault("model.init", problem, f"write {name} = {found} there, or use the tokenizer that belongs to the model")


def index_of(tag: str) -> str:
    """The entry of config.json with the id of `<image>` or `<video>`."""
    return f"{tag.strip('<>')}_token_index"
