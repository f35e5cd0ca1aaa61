"""The scripts of data/scripts as modules, and the demo's data made once with few lists and clips."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "data" / "scripts"


@pytest.fixture(scope="session")
def script() -> Iterator[ModuleType]:
    """make_demo.py; as long as it lasts, the other scripts can be imported by name, too."""
    sys.path.insert(0, str(SCRIPTS))
    module = importlib.import_module("make_demo")
    vars(module).update(NUM_LISTS=40, NUM_VIDEOS=12, NUM_TEXTS=60, NUM_HELD_OUT=20)
    yield module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def folder(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "seed3"
    out.mkdir()
    script.make(out, 3)
    (out / "made_by.json").write_text("{}")
    return out
