"""The wheel carries its recipes, mixtures and demo picture, and works from an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | environ)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel's content as pip would lay it out."""
    out = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT), cwd=out)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


def test_wheel_runs_from_an_empty_folder(installed, tmp_path):
    def command(*words: str) -> subprocess.CompletedProcess:
        return run(sys.executable, "-m", "llava_train", *words, cwd=tmp_path, PYTHONPATH=str(installed))

    where = run(
        sys.executable, "-c", "import llava_train; print(llava_train.__file__)", cwd=tmp_path, PYTHONPATH=str(installed)
    )
    assert where.stdout.startswith(str(installed))
    shown = command("--help")
    assert shown.returncode == 0
    assert "ov_stage" in shown.stdout
    missing = command("check", "+recipe=ov_stage")
    assert missing.returncode == 2
    assert "llava_next" in missing.stderr
    trained = command("+recipe=tiny", "~stages.projector", "run.dir=out")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out/onevision/hf/model.safetensors").exists()


def test_wheel_has_what_the_demo_starts_from(installed):
    assets = installed / "llava_train/_assets"
    assert (assets / "data/demo/digits.png").read_bytes() == (ROOT / "data/demo/digits.png").read_bytes()
    shipped = {path.name for path in (assets / "recipes").iterdir()}
    assert shipped == {path.name for path in (ROOT / "recipes").iterdir()}
