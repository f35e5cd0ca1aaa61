"""Weights from safetensors into a transformers class, where every key must fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from llava_train.shared.errors import ConfigError


def load_strictly(
    model_class: Any, key: str, folder: Path, dtype: torch.dtype | str, dropped: str = "^$", **kwargs: Any
) -> Any:
    """`from_pretrained` of the folder that `key` of the config names, without code from it.

    A `state_dict` among the arguments stands for the folder's weights; a `config` must then be there too. Raises
    ConfigError where there are no safetensors or a key is missing, unexpected (unless it matches `dropped`) or of
    another shape.
    """
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # else a published tower's dropped keys fill the screen; they are judged below
    try:
        loaded, info = model_class.from_pretrained(
            None if "state_dict" in kwargs else folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, then refused below, together with the others
            output_loading_info=True,
            attn_implementation="sdpa",
            **kwargs,
        )
    except OSError as error:
        raise ConfigError.one(key, str(error), "name a folder or hub checkpoint with safetensors weights") from error
    finally:
        logging.set_verbosity(level)
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(name for name in info["unexpected_keys"] if not re.search(dropped, name)),
        "of another shape": sorted(name for name, *_ in info["mismatched_keys"]),
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        problem = f"{folder} does not fit {type(loaded).__name__}: {told}"
        raise ConfigError.one(key, problem, "use a checkpoint of this architecture")
    return loaded
