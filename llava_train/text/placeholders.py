"""The `<image>` and `<video>` placeholder tokens of a tokenizer."""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.errors import ConfigError
from llava_train.text.placeholder_ids import tag_fault


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, image_token_id: int, video_token_id: int) -> None:
    """Adds `<image>`, `<video>` where missing, in place. Raises ConfigError where their ids are not the config's."""
    expected = {IMAGE_TAG: image_token_id, VIDEO_TAG: video_token_id}
    add_tags(tokenizer, sorted(expected, key=expected.__getitem__))
    found = tokenizer.get_added_vocab()
    config = {"image_token_index": image_token_id, "video_token_index": video_token_id}
    if faults := [fault for tag in expected if (fault := tag_fault(tag, found.get(tag), config))]:
        raise ConfigError(faults)


def add_tags(tokenizer: PreTrainedTokenizerBase, tags: list[str] | tuple[str, ...] = (IMAGE_TAG, VIDEO_TAG)) -> None:
    """Adds the tags that are not yet tokens, in the given order, as special and not normalised."""
    known = tokenizer.get_added_vocab()
    missing = [AddedToken(tag, special=True, normalized=False) for tag in tags if tag not in known]
    tokenizer.add_tokens(missing, special_tokens=True)
