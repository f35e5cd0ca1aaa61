"""A run's settings on disk: written out whole, and as the fingerprint that decides whether a checkpoint may go on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from llava_train.config.mixture import MIXTURE_SUFFIXES, load_mixture
from llava_train.config.schema import Config
from llava_train.config.shipped_files import asset
from llava_train.config.typed import field_types
from llava_train.records.file_formats import split_of
from llava_train.start_folder.find import folder_here, weight_files

# What changes speed, memory or files, never the step's mathematics beyond rounding.
_STAGE_FREE = ("pack", "gradient_checkpointing", "checkpoint", "zero")
DATA_FIXED = (
    "on_error",
    "allow_missing_sources",
    "allow_outside_root",
    "video_decoder",
    "max_pixels",
    "max_frames",
    "max_media",
    "too_long",
)
DATA_PLACES = ("data.file", "evaluation.file")
START_PLACES = ("model.init", "model.language_model", "model.vision_tower")
_OWN = "run.dir/"  # before a place in the run's own folder, which may be moved
_SAMPLED = 65536  # bytes from each end of a file of a start
PACKAGES = ("llava_train", "torch", "transformers", "deepspeed")


def dump(config: Any) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def fingerprint(config: Config, stage_name: str, num_ranks: int) -> dict[str, dict[str, Any]]:
    """What a checkpoint is compared by, flat keys to values that JSON can hold.

    `fixed` is all that changes a stage's numbers or the order of its data, `free` what may change between a checkpoint
    and its resume and is told, `places` what files are read from: two places are alike where the same lies there. A
    mixture counts by what it holds, not by where its file lies. Raises ConfigError if it cannot be read.
    """
    settings = _flat(config.stages[stage_name], f"stages.{stage_name}")
    tokens = config.stages[stage_name].pack.unit == "tokens"  # then packs decide which samples a step has
    keys = tuple(f"stages.{stage_name}.{name}" for name in _STAGE_FREE if not (tokens and name == "pack"))
    free = {key: value for key, value in settings.items() if key.startswith(keys)}
    free |= {"number of ranks": num_ranks, "model.attention": config.model.attention}
    free |= {"data.num_workers": config.data.num_workers}
    evaluation = _flat(config.evaluation, "evaluation")
    del evaluation["evaluation.file"]  # a place
    held_out = {"evaluation.held_out": value} if (value := evaluation.pop("evaluation.held_out")) else {}
    free |= _flat(config.log, "log") | evaluation
    free |= {f"version of {package}": version(package) for package in PACKAGES}
    fixed = {key: value for key, value in settings.items() if key not in free and not key.endswith(".mixture")}
    fixed = _start_and_data(config, stage_name) | fixed | held_out
    return {"fixed": fixed, "free": free, "places": _places(config, stage_name)}


def _start_and_data(config: Config, stage_name: str) -> dict[str, Any]:
    stage, data = config.stages[stage_name], config.data
    marks: dict[str, Any] = {"stage": stage_name, "run.seed": config.run.seed}
    if before := _stage_before(config, stage_name):
        marks["start"] = f"stage {before}"
    for name in DATA_FIXED:
        marks[f"data.{name}"] = getattr(data, name)
    if Path(data.file).suffix in MIXTURE_SUFFIXES or (stage.mixture and not data.file):
        sources = load_mixture(data.file or stage.mixture)
        wanted = {name: {k: getattr(s, k) for k in ("file", "sampling", "repeat")} for name, s in sources.items()}
        marks |= _flat(wanted, "sources")
    return marks


def _stage_before(config: Config, stage_name: str) -> str:
    names = ["", *config.stages]
    return names[names.index(stage_name) - 1]


def _places(config: Config, stage_name: str) -> dict[str, str]:
    named = {"data.file": config.data.file, "evaluation.file": config.evaluation.file}
    places = {key: _resolved_data(file, config.data.root) for key, file in named.items() if file}
    if _stage_before(config, stage_name):
        return places
    model = config.model
    starts = ("model.init",) if model.init else ("model.language_model", "model.vision_tower")
    return places | {key: place(getattr(model, key.partition(".")[2]), config.run.dir) for key in starts}


def _resolved_data(file: str, root: str) -> str:
    """As `file_sources` finds it: from the working directory, else from `data.root`; with the split behind it."""
    path, split = split_of(file)
    below = split_of(Path(root, file))[0]
    found = below if below.exists() and not path.exists() else path
    return os.path.realpath(found) + file[len(str(path)) :] if split else os.path.realpath(found)


def place(start: str, run_dir: str) -> str:
    """A start by what it leads to: links are followed, one inside of the run is relative to it.

    What is no path stays: the hub's names, and `tiny`.
    """
    if start.startswith(_OWN) or not Path(start).exists():
        return start
    found, run = Path(start).resolve(), Path(run_dir).resolve()
    return _OWN + found.relative_to(run).as_posix() if found.is_relative_to(run) else str(found)


def start_content(start: str) -> str:
    """Of a start's weights, config and tokenizer: names, sizes and the two ends of each file; empty where none is."""
    folder = folder_here(start)
    files = [*weight_files(folder), folder / "config.json", *sorted(folder.glob("tokenizer*.json"))] if folder else []
    files = [path for path in files if path.is_file()]
    content = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = path.stat().st_size
            content.update(repr((path.name, size)).encode() + file.read(_SAMPLED))
            file.seek(max(0, size - _SAMPLED))
            content.update(file.read(_SAMPLED))
    return content.hexdigest()[:16] if files else ""


def with_defaults(saved: dict[str, Any], now: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """`saved` with each setting of `now` that it lacks.

    known: all settings of the checkpoint. One that it has counts as there; one that it lacks is newer than the run, and
    counts as its documented default.
    """
    missing = {key: known.get(key, _documented_default(key, known)) for key in now if key not in saved}
    return saved | {key: value for key, value in missing.items() if value is not MISSING}


def _documented_default(key: str, saved: dict[str, Any]) -> Any:
    """By the schema, else by configs/config.yaml; MISSING where neither has one.

    An entry by name, such as an adapter of a part, has no default where the run did not have that entry.
    """
    kind: Any = Config
    default: Any = MISSING
    common: Any = yaml.safe_load(Path(asset("configs/config.yaml")).read_text(encoding="utf-8"))
    names = key.split(".")
    for depth, name in enumerate(names, 1):
        common = common.get(name, MISSING) if isinstance(common, dict) else MISSING
        if get_origin(kind) is dict:
            entry = ".".join(names[:depth]) + "."
            if not any(other.startswith(entry) for other in saved):
                return MISSING
            kind, default = get_args(kind)[1], MISSING
        elif is_dataclass(kind) and name in (types := field_types(kind)):
            kind, default = types[name], next(field.default for field in fields(kind) if field.name == name)
        else:
            return MISSING
    return common if default is MISSING else default


def changed_settings(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line `key: in the checkpoint -> now` for each entry in which two mappings differ; empty if they agree."""
    lines = []
    for key in [*saved, *(key for key in now if key not in saved)]:
        if key not in saved or key not in now or saved[key] != now[key]:
            lines.append(f"{key}: {saved.get(key, 'not set')} -> {now.get(key, 'not set')}")
    return lines


def _flat(value: Any, key: str) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {k: v for name, entry in value.items() for k, v in _flat(entry, f"{key}.{name}").items()}
    return {key: value}
