"""Settings that are paths: `~` is the home folder, and nothing that a shell or OmegaConf replaces may be left."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, get_args, get_type_hints

from llava_train.shared.errors import Fault

Pathname = Annotated[str, "path"]  # the type of a field of the schema that is a path, or a name in place of one
_LEFT = re.compile(r"(^|/)~[^/]*|\$\{[^}]*\}?|(^|/)\$\w+(?=/|$)")


def path_fields(cls: Any) -> set[str]:
    """The fields of a dataclass that hold a path, or a list of paths."""
    hints = get_type_hints(cls, include_extras=True)
    return {name for name, hint in hints.items() if hint == Pathname or Pathname in get_args(hint)}


def expanded(path: str, key: str, faults: list[Fault]) -> str:
    """`~` and `~USER` at its beginning replaced; a fault where one is left, or a variable is."""
    path = os.path.expanduser(path)
    if left := _LEFT.search(path):
        problem = f"{path} still holds {left.group().lstrip('/')}, which nothing replaces here"
        faults.append(Fault(key, problem, "write the path out; quotes keep a shell from replacing variables"))
    return path
