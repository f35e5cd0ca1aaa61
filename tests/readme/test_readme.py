"""What the README tells people to type is there and works."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from original_format import source_model, write_full, write_tower
from stage_folders import write_stage

from llava_train.cli.main import VERBS, main
from llava_train.config.shipped_files import shipped_recipes
from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"`[^`]*?(python -m llava_train [^`]*|torchrun [^`]*-m llava_train [^`]*)`", README)
TARGETS = sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)))


def test_make_targets_exist():
    assert {"demo", "test", "test-all"} <= set(TARGETS)
    for target in TARGETS:
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_paths_and_recipes_are_there():
    for path in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(
        r"`((?:recipes|configs|data|llava_train|tests|docs)/[\w./]*)`", README
    ):
        assert (ROOT / path).exists(), path
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert named == set(shipped_recipes())


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny(tmp_path / "model")
    (tmp_path / "my_recipes").mkdir()
    (tmp_path / "my_recipes/mine.yaml").write_text("defaults: [tiny, _self_]\n")
    return {"model.init=DIR": "model.init=model", "data.file=FILE": f"data.file={ROOT / 'data/tiny/tiny.json'}"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, own, capsys):
    """Each verb as it stands, on a tiny model and data; a run of a real recipe is only checked."""
    words = shlex.split(command)
    words = words[words.index("llava_train") + 1 :]
    verb = words.pop(0) if words[0] in VERBS else "check"
    words = [own.get(word, word) for word in words]
    words = [f"data.root={ROOT / 'data/tiny'}" if word == "data.root=DIR" else word for word in words]
    model = source_model()
    if verb in ("export", "status"):
        write_stage(Path("runs/tiny"), model, byte_tokenizer())
    if verb == "convert":  # the original's folders do not tell the tower's sizes, so a tiny one is given
        words = [
            f"original={write_full(Path('theirs'), model)}",
            "out=out",
            f"vision_tower={write_tower(Path('t'), model)}",
        ]
    if verb == "generate":
        image = next((ROOT / "data/tiny/images").iterdir())
        words = ["model.init=model", words[1], f"images=[{image}]", "max_new_tokens=2"]
    code = main([verb, *words])
    told = capsys.readouterr().err
    assert code == 0 or "fewer than one batch" in told or "global_batch_size" in told, told


def test_there_are_commands():
    assert len(COMMANDS) >= 5
