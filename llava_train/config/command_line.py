"""The words of a command line: group choices, and values set after the recipe is composed.

Values are applied here and not by Hydra, so that each misspelt key is found and texts arrive as written: Hydra's
grammar refuses apostrophes, `=` and `: `, and makes a sweep of a comma. Other values are read by that grammar.

Forms: `KEY=VALUE` sets, `+KEY=VALUE` also adds an entry to a mapping by name, `~KEY` removes one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llava_train.config.typed import UNSOUND, describe, field_types, nearest, unknown
from llava_train.shared.errors import Fault

Action = Literal["set", "add", "remove"]
GROUPS = ("recipe", "model")
CONFIG_DIR = "--config-dir"
_KEY = r"[^-+~=.\s][^=.]*(?:\.[^=.]+)*"
_SETTING = re.compile(rf"~(?P<removed>{_KEY})|(?P<sign>\+{{0,2}})(?P<key>{_KEY})=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Override:
    key: str
    value: str
    action: Action


@dataclass
class CommandLine:
    choices: dict[str, str] = field(default_factory=dict)  # group to name
    config_dir: str = ""
    values: list[Override] = field(default_factory=list)


def split_words(argv: list[str], faults: list[Fault]) -> CommandLine:
    """Sorts the words; those that are no setting become faults."""
    line, words = CommandLine(), iter(argv)
    for word in words:
        if word == CONFIG_DIR or word.startswith(f"{CONFIG_DIR}="):
            line.config_dir = os.path.expanduser(word[len(CONFIG_DIR) + 1 :] or next(words, ""))
            if not line.config_dir:
                faults.append(Fault(CONFIG_DIR, "names no folder", f"write {CONFIG_DIR} my_recipes"))
            continue
        setting = _SETTING.fullmatch(word)
        if not setting:
            faults.append(Fault(word, "is not a setting", "write KEY=VALUE, for example run.seed=1"))
            continue
        sign, key, value = setting["sign"], setting["key"] or setting["removed"], setting["value"] or ""
        if key in GROUPS and not setting["removed"]:
            if line.choices.get(key, value) != value:
                faults.append(Fault(key, f"is chosen twice: {line.choices[key]} and {value}", "choose one"))
            line.choices[key] = value
        else:
            line.values.append(Override(key, value, "remove" if setting["removed"] else "add" if sign else "set"))
    return line


def apply(config: DictConfig, schema: type, overrides: list[Override], faults: list[Fault]) -> dict[str, str]:
    """Sets the values in `config`. Texts go in as marks, returned with what they stand for (see `restore`)."""
    marks: dict[str, str] = {}
    for override in overrides:
        kind = _kind_of(override, config, schema, faults)
        if kind is UNSOUND:
            continue
        if override.action == "remove":
            parent, _, name = override.key.rpartition(".")
            del (OmegaConf.select(config, parent) if parent else config)[name]
            continue
        try:
            value = _read(kind, override.value, marks)
            OmegaConf.update(config, override.key, value, merge=True, force_add=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            reason = str(error).splitlines()[0]
            faults.append(Fault(override.key, f"cannot read {override.value} ({reason})", f"allowed: {describe(kind)}"))
    return marks


def restore(value: Any, marks: dict[str, str]) -> Any:
    """The container with each mark replaced by its text, after interpolations are resolved."""
    if isinstance(value, dict):
        return {key: restore(entry, marks) for key, entry in value.items()}
    if isinstance(value, list):
        return [restore(entry, marks) for entry in value]
    if isinstance(value, str):
        for mark, text in marks.items():
            value = value.replace(mark, text)
    return value


def split_list(text: str) -> list[str]:
    """Entries of `[a.png,'b,c.png']`: commas separate, quotes around a whole entry protect, all else is as written."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(f"a list needs brackets: [{text}]")
    rest, entries = text[1:-1].strip(), list[str]()
    while rest:
        quote, end = rest[0], -1
        if quote in "'\"":
            closings = (i for i in range(1, len(rest)) if rest[i] == quote)
            end = next((i for i in closings if rest[i + 1 :].lstrip()[:1] in ("", ",")), -1)
        if end > 0:
            entry, rest = rest[1:end], rest[end + 1 :].lstrip()[1:]
        else:
            entry, _, rest = rest.partition(",")
            entry = entry.strip()
        entries.append(entry)
        rest = rest.lstrip()
    return entries


def _read(kind: Any, text: str, marks: dict[str, str]) -> Any:
    if _is_text(kind):
        return _mark(text, marks)
    if get_origin(kind) is list and _is_text(get_args(kind)[0]):
        return [_mark(entry, marks) for entry in split_list(text)]
    parsed = OverridesParser.create().parse_override(f"x={text}")
    if parsed.is_sweep_override():
        raise ValueError("a list needs brackets")
    return parsed.value()


def _is_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind)))


def _mark(text: str, marks: dict[str, str]) -> str:
    mark = f"\x00{len(marks)}\x00"
    marks[mark] = text
    return mark


def _kind_of(override: Override, config: DictConfig, schema: type, faults: list[Fault]) -> Any:
    """Schema type at the override's key; UNSOUND with a fault if there is none, or no such entry."""
    kind: Any = schema
    node: Any = config
    parts = override.key.split(".")
    for i, part in enumerate(parts):
        path, last = ".".join(parts[: i + 1]), i == len(parts) - 1
        if is_dataclass(kind):
            if part not in field_types(kind):
                faults.append(_unknown_field(path, override.key, kind, config, schema))
                return UNSOUND
            kind = field_types(kind)[part]
        elif get_origin(kind) is dict:
            names = list(node) if isinstance(node, DictConfig) else []
            if part not in names and override.action != "add":
                fault = unknown(path, names, "no such entry")
                to_add = "" if override.action == "remove" else f" To add it: +{override.key}=..."
                faults.append(Fault(path, fault.problem, fault.remedy + to_add))
                return UNSOUND
            kind = get_args(kind)[1]
        else:
            faults.append(Fault(override.key, f"{'.'.join(parts[:i])} has no parts", f"it is {describe(kind)}"))
            return UNSOUND
        node = _child(node, part)
        if last and override.action == "remove" and node is None:
            faults.append(Fault(override.key, "is not set, so it cannot be removed", f"leave out ~{override.key}"))
            return UNSOUND
    return kind


def _unknown_field(path: str, key: str, kind: Any, config: DictConfig, schema: type) -> Fault:
    """Nearest among the siblings; failing that, keys elsewhere that end alike."""
    fault = unknown(path, field_types(kind))
    if fault.remedy.startswith("did you mean"):
        return fault
    keys = all_keys(schema, config)
    ends = [k for k in keys if k.endswith(f".{key}")]
    if not ends and (last := nearest(key.rpartition(".")[2], {k.rpartition(".")[2] for k in keys})):
        ends = [k for k in keys if k.endswith(f".{last}")]
    return Fault(path, fault.problem, f"did you mean {' or '.join(ends[:4])}?") if ends else fault


def all_keys(kind: Any, node: Any, prefix: str = "") -> list[str]:
    """Every settable dotted key of a schema, with the names that `node`'s mappings hold."""
    if is_dataclass(kind):
        children = field_types(kind)
    elif get_origin(kind) is dict:
        children = dict.fromkeys(node if isinstance(node, DictConfig) else (), get_args(kind)[1])
    else:
        return [prefix]
    return [
        key
        for name, child in children.items()
        for key in all_keys(child, _child(node, name), f"{prefix}.{name}".strip("."))
    ]


def _child(node: Any, name: str) -> Any:
    """Entry of a config without resolving it; None if absent."""
    if not isinstance(node, DictConfig) or OmegaConf.is_interpolation(node) or name not in list(node):
        return None
    if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name):
        return ""
    return node[name]
