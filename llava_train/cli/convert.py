"""`convert`: a checkpoint of the original trainer as a Hugging Face folder."""

from __future__ import annotations

from llava_train.config.load import load_verb
from llava_train.config.schema import ConvertConfig
from llava_train.model.convert.convert import convert


def run(argv: list[str]) -> int:
    """Writes the folder `out` and prints what it was made of. Raises ConfigError, and then has written nothing."""
    settings = load_verb(ConvertConfig, argv)
    for name, text in convert(settings).items():
        print(f"{name}: {text}")
    print(f"written to {settings.out}")
    return 0
