"""The tokenizer of a checkpoint folder, and the ids of its `<image>` and `<video>`."""

from __future__ import annotations

import itertools

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_train.config.errors import ConfigError, Fault
from llava_train.family.onevision.template import IMAGE_TAG, VIDEO_TAG


def load_tokenizer(folder: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; `key` is the setting that names the folder. ConfigError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise ConfigError([Fault(key, str(error), "name a folder or hub checkpoint with tokenizer files")]) from error


def placeholder_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of `<image>` and `<video>`: where the tokenizer has them, else the next free ones in this order."""
    vocabulary = tokenizer.get_vocab()
    free = itertools.count(max(vocabulary.values()) + 1)
    image_id, video_id = (vocabulary[tag] if tag in vocabulary else next(free) for tag in (IMAGE_TAG, VIDEO_TAG))
    return image_id, video_id
