"""From a command line to one checked `Config`, or to every fault of it at once.

Hydra composes `configs/config.yaml`, a model size and a recipe; then the command line's values are set, interpolations
resolved, types checked (`typed`) and rules judged (`rules`). Nothing is read from the working directory but what the
command line names.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llava_train.config.command_line import CONFIG_DIR, CommandLine, apply, restore, split_words
from llava_train.config.mixture import read_yaml
from llava_train.config.rules.run import judge, judge_verb
from llava_train.config.schema import (
    CompareConfig,
    Config,
    ConvertConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    StatusConfig,
)
from llava_train.config.shipped_files import asset, assets_root, shipped_models, shipped_recipes, yaml_files
from llava_train.config.typed import UNSOUND, build, nearest
from llava_train.shared.errors import ConfigError, Fault

Settings = TypeVar("Settings")
# of a verb that reads no recipe: its name, and what it cannot do without
_WITHOUT_RECIPE: dict[Any, tuple[str, str]] = {
    GenerateConfig: ("generate", "model.init=DIR_OR_HUB_NAME"),
    EvaluateConfig: ("evaluate", "model.init=DIR data.file=FILE"),
    CompareConfig: ("compare", "before=DIR after=[DIR,...]"),
    ConvertConfig: ("convert", "original=DIR out=DIR"),
    ExportConfig: ("export", "run.dir=DIR out=DIR"),
    StatusConfig: ("status", "run.dir=DIR"),
}
_read_once = cache(read_yaml)  # for our own recipes, which do not change while a process runs


def load(argv: list[str]) -> Config:
    """The run that `argv` describes. Raises ConfigError with all its faults."""
    config, faults = collect(argv)
    if faults:
        raise ConfigError(faults)
    return config


def collect(argv: list[str]) -> tuple[Config, list[Fault]]:
    """The run and its faults; where there are faults, the fields that have one are not set."""
    faults: list[Fault] = []
    line = split_words(argv, faults)
    composed = _compose(line, faults)
    if composed is None:
        return object.__new__(Config), faults
    config = _typed(Config, composed, line, faults)
    return config, faults + judge(config, complete=not faults)


def load_dumped(path: Path) -> Config:
    """A run's `config.yaml`, as `fingerprint.dump` wrote it. Raises ConfigError where it is not of this schema."""
    faults: list[Fault] = []
    config = build(Config, yaml.safe_load(path.read_text(encoding="utf-8")), "", faults)
    if faults:
        raise ConfigError([replace(fault, key=f"{path}: {fault.key}") for fault in faults])
    return config


def load_verb(schema: type[Settings], argv: list[str]) -> Settings:
    """The settings of a verb that reads no recipe. Raises ConfigError with all their faults."""
    verb, needed = _WITHOUT_RECIPE[schema]
    faults: list[Fault] = []
    line = split_words(argv, faults)
    for group in line.choices:
        faults.append(Fault(group, f"{verb} reads no recipe", f"set {needed}, and leave this out"))
    config: Settings = _typed(schema, OmegaConf.create({}), line, faults)
    faults += judge_verb(config, complete=not faults)
    if faults:
        raise ConfigError(faults)
    return config


def _typed(schema: Any, composed: DictConfig, line: CommandLine, faults: list[Fault]) -> Any:
    marks = apply(composed, schema, line.values, faults)
    return build(schema, restore(_resolved(composed, "", faults), marks), "", faults)


def _compose(line: CommandLine, faults: list[Fault]) -> DictConfig | None:
    """The composed recipe before the command line's values; None, with faults, where there is none."""
    known = {"recipe": shipped_recipes() | _own_recipes(line.config_dir, faults), "model": shipped_models()}
    if "recipe" not in line.choices:
        faults.append(Fault("recipe", "none is chosen", f"+recipe=NAME, one of {', '.join(known['recipe'])}"))
    for group, choice in line.choices.items():
        if choice not in known[group]:
            close = nearest(choice, known[group])
            remedy = f"did you mean {close}?" if close else f"known: {', '.join(known[group])}"
            own = f"; a recipe of your own: {CONFIG_DIR} FOLDER" if group == "recipe" and not line.config_dir else ""
            faults.append(Fault(group, f"no {group} {choice}", remedy + own))
    broken = _register(known["recipe"])
    faults += broken
    if broken or "recipe" not in line.choices or any(name not in known[group] for group, name in line.choices.items()):
        return None
    words = [f"{'+' if group == 'recipe' else ''}{group}={_quoted(choice)}" for group, choice in line.choices.items()]
    OmegaConf.register_new_resolver("asset", asset, replace=True)
    try:
        with initialize_config_dir(str(assets_root() / "configs"), version_base="1.3"):
            composed = compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        recipe = line.choices["recipe"]
        reason = " ".join(str(error).split())
        faults.append(Fault(f"recipe {recipe}", f"does not compose: {reason}", f"mend {known['recipe'][recipe]}"))
        return None
    OmegaConf.set_struct(composed, False)
    return composed


def _own_recipes(folder: str, faults: list[Fault]) -> dict[str, Path]:
    if not folder:
        return {}
    if not Path(folder).is_dir():
        faults.append(Fault(CONFIG_DIR, f"no folder {folder}", "give the folder that holds your recipes' .yaml files"))
        return {}
    own = yaml_files(Path(folder))
    if not own:
        faults.append(Fault(CONFIG_DIR, f"no .yaml file in {folder}", "put NAME.yaml there for +recipe=NAME"))
    for name in sorted(own.keys() & shipped_recipes().keys()):
        faults.append(Fault(f"recipe {name}", f"{own[name]} has the name of a recipe of ours", "give it another name"))
        del own[name]
    return own


def _register(recipes: dict[str, Path]) -> list[Fault]:
    """Makes these recipes, no others, known to Hydra as group `recipe`. Returns faults of files that do not parse."""
    store, faults = ConfigStore.instance(), list[Fault]()
    store.repo.pop("recipe", None)
    for name, path in recipes.items():
        try:
            content = _read_once(path) if path.is_relative_to(assets_root()) else read_yaml(path)
        except ConfigError as error:
            faults += error.faults
            continue
        if isinstance(content, ListConfig):
            faults.append(Fault(str(path), "is a list", "a recipe is a mapping: run, model, data, stages ..."))
            continue
        store.store(name=name, node=content, group="recipe", package="_global_", provider=str(path))
    return faults


def _quoted(name: str) -> str:
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _resolved(node: DictConfig | ListConfig, key: str, faults: list[Fault]) -> Any:
    """Plain container with interpolations resolved; UNSOUND and a fault for each that cannot be."""
    positions = list(node) if isinstance(node, DictConfig) else range(len(node))
    made: dict[Any, Any] = {}
    for position in positions:
        path = f"{key}.{position}".strip(".")
        if OmegaConf.is_missing(node, position):
            faults.append(Fault(path, "is not set", f"set it: {path}=..."))
            made[position] = UNSOUND
            continue
        try:
            value = node[position]
        except OmegaConfBaseException as error:
            faults.append(Fault(path, " ".join(str(error).split("\n")[0].split()), "mend the ${...} in it"))
            value = UNSOUND
        made[position] = _resolved(value, path, faults) if isinstance(value, DictConfig | ListConfig) else value
    return made if isinstance(node, DictConfig) else list(made.values())
