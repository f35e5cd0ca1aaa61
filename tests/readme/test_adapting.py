"""docs/adapting.md from top to bottom, as a newcomer types it: a tiny model, a folder of pictures and a CSV."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from llava_train.cli.main import main
from llava_train.config.load import load
from llava_train.model.loading.tiny_model import make_tiny

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/adapting.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
[SNIPPET] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
QUESTION = "What does the meter read?"


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Path:
    """A working directory with `photos/questions.csv`, 40 rows to train on and 4 to test, and a model called MODEL."""
    folder = tmp_path_factory.mktemp("newcomer")
    make_tiny(folder / "MODEL")
    (folder / "photos/meters").mkdir(parents=True)
    rows = ["image,question,answer,split"]
    for n in [*range(1, 41), *range(900, 904)]:
        Image.new("RGB", (40, 30), (n % 256, 50, 50)).save(folder / f"photos/meters/{n:03}.jpg")
        rows.append(f"meters/{n:03}.jpg,{QUESTION},{n / 10:.1f} bar,{'test' if n >= 900 else 'train'}")
    (folder / "photos/questions.csv").write_text("\n".join(rows) + "\n")
    return folder


def words_of(command: str) -> list[str]:
    """The words after `python -m llava_train`. The training ends after two steps; others, by run.name, are checked."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "llava_train"], command
    if not words[3].startswith("+recipe"):
        return words[3:]
    if any(word.startswith("run.name=") for word in words):
        return ["check", *words[3:]]
    return [*words[3:], "stages.domain.max_steps=2", "data.num_workers=0"]


def test_it_can_be_followed(newcomer, monkeypatch, capsys):
    """Every command in order, and in the end the Python that serves the adapter."""
    monkeypatch.chdir(newcomer)
    assert len(COMMANDS) >= 12
    for command in COMMANDS:
        assert main(words_of(command)) == 0, f"{command}\n{capsys.readouterr().err}"
    for path in re.findall(r"`((?:evaluations|runs)/[\w/.]+)`", TEXT):
        assert Path(path).exists(), path
    assert len(Path("evaluations/after/predictions.jsonl").read_text().splitlines()) == 4
    grids = [
        json.loads(Path(f, "preprocessor_config.json").read_text()) for f in ("MODEL", "runs/lora_domain/domain/hf")
    ]
    assert grids[0]["image_grid_pinpoints"] == grids[1]["image_grid_pinpoints"], "that of the checkpoint"
    capsys.readouterr()
    exec(compile(SNIPPET, "docs/adapting.md", "exec"), {})
    served = capsys.readouterr().out.strip()
    said = [json.loads(line) for line in Path("evaluations/after/predictions.jsonl").read_text().splitlines()]
    [same] = [line["predicted"] for line in said if line["images"][0].endswith("900.jpg")]
    assert served == same


def test_settings_begin_where_it_says():
    rows = re.findall(r"^\| `(stages\.domain\.[\w.]+)` \| ([^|]+?) \|", TEXT, re.MULTILINE)
    assert len(rows) >= 6
    config = load(["+recipe=lora_domain", "data.file=a.jsonl", "data.root=."])
    for key, told in rows:
        value = config
        for name in key.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        assert str(value) == told or float(value) == float(told), key


def test_paths_are_there():
    named = re.findall(r"`((?:recipes|configs|data|llava_train|tests|docs)/[\w./]+)`", TEXT)
    assert named
    assert all((ROOT / path).exists() for path in named)
