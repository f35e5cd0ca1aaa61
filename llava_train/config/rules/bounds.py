"""A number within its bound, or a fault that says which."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from llava_train.config.typed import shown
from llava_train.shared.errors import Fault

Bound = tuple[str, str, float]  # key below the node, comparison, bound
_COMPARE = {">=": operator.ge, ">": operator.gt, "<": operator.lt, "<=": operator.le}


def bounded(prefix: str, node: Any, bound: Bound, more: str = "") -> Iterator[Fault]:
    """A word in the place of a number (frozen, checkpoint) has no bound. more: what else is allowed."""
    key, comparison, limit = bound
    value = operator.attrgetter(key)(node)
    if not isinstance(value, str) and not _COMPARE[comparison](value, limit):
        yield Fault(prefix + key, f"{shown(value)} is out of range", f"allowed: {comparison} {limit}{more}")
