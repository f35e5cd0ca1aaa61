"""Other packages, each installed once into a git-ignored folder, used by subprocesses alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".venv-compat"


def install(name: str) -> Path:
    """The folder that holds requirements-NAME.txt, installed unless it is there with the same content."""
    wanted = (HERE / f"requirements-{name}.txt").read_text()
    folder, stamp = INSTALLED / name, INSTALLED / f"{name}.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), "-r", str(HERE / f"requirements-{name}.txt")], check=True)
    stamp.write_text(wanted)
    return folder


@pytest.fixture(scope="session")
def path_of():
    """PYTHONPATH that puts these packages before the environment's own."""
    return lambda *names: os.pathsep.join(str(install(name)) for name in names)


@pytest.fixture(scope="session", params=["4.57", "5"])
def major_path(request) -> tuple[str, str]:
    """(major, PYTHONPATH that puts it before the environment's packages)."""
    folders = [install("torchvision")] + ([install("4.57")] if request.param == "4.57" else [])
    return request.param, os.pathsep.join(map(str, folders))
