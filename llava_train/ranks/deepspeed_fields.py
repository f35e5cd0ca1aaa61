"""What is private of DeepSpeed is read here alone, so that a version without it is named, with what it misses."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from llava_train.shared.errors import RunError

TESTED = ">=0.19.8,<0.20"  # as in pyproject.toml, which says why


def internal(owner: object, *names: str) -> Any:
    """The first of these fields that `owner` has. Raises RunError where it has none."""
    for name in names:
        if hasattr(owner, name):
            return getattr(owner, name)
    kind = getattr(owner, "__name__", type(owner).__name__)
    told = f"deepspeed {version('deepspeed')}: {kind} has no {' or '.join(names)}, which llava_train reads"
    raise RunError(f"{told}\n    -> pip install 'deepspeed{TESTED}', the range that is tested")
