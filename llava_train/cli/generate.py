"""`generate`: one answer of a checkpoint to one prompt about images and videos."""

from __future__ import annotations

from pathlib import Path

import torch

from llava_train.config.load import load_generate
from llava_train.config.schema import GenerateConfig
from llava_train.data.sample import Sample, Turn
from llava_train.family.onevision.template import IMAGE_TAG, VIDEO_TAG
from llava_train.train.answer import Answerer

MAX_PIXELS = 2**30 // 6  # Pillow's own limit before it warns of a decompression bomb
DECODE_TIMEOUT = 60.0  # seconds


def run(argv: list[str]) -> int:
    """Prints the answer. Raises ConfigError, DataError."""
    config = load_generate(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answerer = Answerer(config.model.init, device, MAX_PIXELS, DECODE_TIMEOUT, config.dtype)
    print(*answerer.answers([prompt_sample(config)], 1, config.max_new_tokens))
    return 0


def prompt_sample(config: GenerateConfig) -> Sample:
    """The prompt as a sample to be answered. Without tags in it, the media come first, images before videos."""
    images = [Path(path) for path in config.images]
    videos = [Path(path) for path in [*config.videos, config.video] if path]
    text = config.prompt
    if not (IMAGE_TAG in text or VIDEO_TAG in text):
        text = media_first(text, [IMAGE_TAG] * len(images) + [VIDEO_TAG] * len(videos))
    system = [Turn("system", config.system)] if config.system else []
    return Sample("prompt", "generate", [*system, Turn("human", text)], images, videos, record="prompt")


def media_first(text: str, tags: list[str]) -> str:
    """What the chat template makes of a message with all media before its text: a newline after each.

    Worked case: `What?`, two images -> `<image>\\n<image>\\nWhat?`.
    """
    if len(tags) == 1:
        text = text.strip()
    glue = "" if text.startswith("\n") or not tags else "\n"
    return "\n".join(tags) + glue + text
