"""Names of tensors and modules: in memory, in the files of transformers 5, and in those of 4.57."""

from __future__ import annotations

import re

# module names of transformers 5 -> names in the file; 4.57 needs `vision_model.`, which 5.x reads as well
RENAMED = (
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
OLDER_MODULES = ("model.vision_tower.", "model.vision_tower.vision_model.")
# How transformers 4.57.6 renames what it finds in a file: models/llava_onevision/modeling_llava_onevision.py, the first
# that matches; and where its modules have other names than those of 5.x.
OLDER_RULES = (
    (r"^language_model\.model", "model.language_model"),
    (r"^vision_tower", "model.vision_tower"),
    (r"^multi_modal_projector", "model.multi_modal_projector"),
    (r"^image_newline", "model.image_newline"),
    (r"^language_model\.lm_head", "lm_head"),
)


def export_name(name: str) -> str:
    """The name in the file of a parameter, by its name in the model of transformers 5."""
    for prefix, replacement in RENAMED:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    raise ValueError(f"no place in a checkpoint for {name}")


def older_name(key: str) -> str:
    """Where transformers 4.57 puts a tensor of the file."""
    for pattern, replacement in OLDER_RULES:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key


def older_module(name: str) -> str:
    """The name in transformers 4.57 of a parameter of 5.x."""
    return name.replace(*OLDER_MODULES) if name.startswith(OLDER_MODULES[0]) else name
