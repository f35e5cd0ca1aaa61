"""Where recipes, configs, mixtures and small data lie: in the installed package, else in the checkout.

The working directory has no say, so that every command works from any folder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def assets_root() -> Path:
    """`llava_train/_assets` in an installed wheel, the checkout's root otherwise."""
    installed = PACKAGE / "_assets"
    return installed if installed.is_dir() else PACKAGE.parent


def asset(relative: str) -> str:
    """Absolute path of an asset; recipes write it as `${asset:data/tiny}`."""
    return str(assets_root() / relative)


def yaml_files(folder: Path) -> dict[str, Path]:
    """Name to file for each `*.yaml` in `folder`, sorted by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_recipes() -> dict[str, Path]:
    return yaml_files(assets_root() / "recipes")


def shipped_mixtures() -> dict[str, Path]:
    return yaml_files(assets_root() / "data" / "mixtures")


def shipped_models() -> dict[str, Path]:
    return yaml_files(assets_root() / "configs" / "model")


def headline(path: Path) -> str:
    """First line of the comment that opens a YAML file, "" without one."""
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    return first.lstrip("# ").strip() if first.startswith("#") else ""
