"""llava_train: staged training of LLaVA-style vision-language models."""

__version__ = "0.1.0"
