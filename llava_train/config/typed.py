"""From a plain container to the schema's dataclasses, collecting every fault instead of stopping at the first.

Enters: nested dicts, lists and scalars, as YAML or the command line gave them. Leaves: a dataclass, and the faults. A
field with a fault stays unset, so that a rule which needs it raises AttributeError and is passed over (`rules.judge`).
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llava_train.config.paths import expanded, path_fields
from llava_train.shared.errors import Fault

UNSOUND = object()  # stands for a value that already has a fault
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # what YAML 1.1 reads as text, for example 1e-5
_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def field_types(cls: Any) -> dict[str, Any]:
    """Field name to resolved type, in the order of the class."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def describe(kind: Any) -> str:
    """What values of a type look like, in words."""
    if is_dataclass(kind):
        return "a mapping of " + ", ".join(field_types(kind))
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(str(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is list:
        return f"a list, each entry {describe(args[0])}"
    if origin is dict:
        return "a mapping by name"
    return _NAMES[kind]


def nearest(word: str, names: Iterable[str]) -> str:
    """The closest of `names`, "" if none is close."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)), "")


def unknown(key: str, names: Iterable[str], what: str = "unknown key") -> Fault:
    """Fault for the last part of a dotted `key`, which should be one of `names`."""
    parent, _, name = key.rpartition(".")
    names = [str(n) for n in names]
    prefix = f"{parent}." if parent else ""
    if close := nearest(name, names):
        return Fault(key, what, f"did you mean {prefix}{close}?")
    return Fault(key, what, f"known here: {', '.join(names)}" if names else f"{parent} has no entries")


def build(kind: Any, value: Any, key: str, faults: list[Fault]) -> Any:
    """`value` as `kind`; UNSOUND, with faults appended, where it does not fit."""
    if value is UNSOUND:
        return UNSOUND
    if is_dataclass(kind):
        return _dataclass(kind, value, key, faults)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType) and isinstance(value, list):
        kind = next((arg for arg in args if get_origin(arg) is list), kind)
        origin, args = get_origin(kind), get_args(kind)
    if origin is dict and isinstance(value, dict):
        return {name: build(args[1], entry, f"{key}.{name}", faults) for name, entry in value.items()}
    if origin is list and isinstance(value, list):
        entries = [build(args[0], entry, f"{key}[{i}]", faults) for i, entry in enumerate(value)]
        return UNSOUND if any(entry is UNSOUND for entry in entries) else entries
    fitting = scalar(kind, value)
    if fitting is UNSOUND:
        faults.append(Fault(key, f"{shown(value)} does not fit", f"allowed: {describe(kind)}"))
    return fitting


def scalar(kind: Any, value: Any) -> Any:
    """`value` as a scalar type, a Literal or a union of these; UNSOUND if it is none of them."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return next((fit for arg in args if (fit := scalar(arg, value)) is not UNSOUND), UNSOUND)
    if origin is Literal:
        return next((choice for choice in args if type(choice) is type(value) and choice == value), UNSOUND)
    if kind is float:
        if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
            value = float(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and math.isfinite(value) else UNSOUND
    return value if type(value) is kind else UNSOUND


def shown(value: Any) -> str:
    """A value as the user may have written it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return (text if len(text) <= 80 else f"{text[:77]}...") or "an empty text"


def _dataclass(cls: Any, value: Any, key: str, faults: list[Fault]) -> Any:
    if not isinstance(value, dict):
        faults.append(Fault(key, f"{shown(value)} does not fit", f"allowed: {describe(cls)}"))
        return UNSOUND
    kinds, prefix, made = field_types(cls), f"{key}." if key else "", object.__new__(cls)
    paths = path_fields(cls)
    for name in value:
        if name not in kinds:
            faults.append(unknown(f"{prefix}{name}", kinds))
    for spec in fields(cls):
        field_key, kind = f"{prefix}{spec.name}", kinds[spec.name]
        if spec.name in value:
            entry = build(kind, value[spec.name], field_key, faults)
        elif (entry := _default(spec)) is UNSOUND and is_dataclass(kind):
            entry = build(kind, {}, field_key, faults)  # names the fields that are needed
        elif entry is UNSOUND:
            faults.append(Fault(field_key, "is not set", f"set it: {field_key}=..., {describe(kind)}"))
        if spec.name in paths and isinstance(entry, list):
            entry = [expanded(path, f"{field_key}[{i}]", faults) for i, path in enumerate(entry)]
        elif spec.name in paths and entry is not UNSOUND:
            entry = expanded(entry, field_key, faults)
        if entry is not UNSOUND:
            setattr(made, spec.name, entry)
    return made


def _default(spec: Field[Any]) -> Any:
    if spec.default is not MISSING:
        return spec.default
    return spec.default_factory() if spec.default_factory is not MISSING else UNSOUND
