"""The transformers class of a model, by its config."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PretrainedConfig


def model_class(config: PretrainedConfig) -> Any:
    """The class that transformers itself takes for a config of a vision-language model."""
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
