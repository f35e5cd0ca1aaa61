"""JSON that every reader takes: read as UTF-8, written without NaN and Infinity, which are no JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Raises OSError, ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def to_json(value: Any, **form: Any) -> str:
    """As `json.dumps`, with null for a number that is not finite."""
    return json.dumps(finite(value), allow_nan=False, **form)


def finite(value: Any) -> Any:
    """`value` with None for each float in it that is NaN or infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def write_json_file(path: Path, content: dict[str, Any]) -> None:
    path.write_text(to_json(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
