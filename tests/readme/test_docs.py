"""What the pages of docs/ name in the checkout is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FOLDERS = ("llava_train", "tests", "benchmarks", "data/scripts", "docs", "slurm")
FILES = {f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.*") if path.is_file()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_modules_and_pages_that_are_named_exist(page):
    """A module by the end of its path: `typed.py` behind `config/load.py` is in some room."""
    text = page.read_text()
    named = re.findall(r"`([\w./-]+\.(?:py|sbatch|sh))`", text) + re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert named
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in FILES)] == []


def test_modules_of_the_design_are_in_the_room_that_its_table_names():
    table = re.findall(r"^\|[^|]*\|([^|]*)\|", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    assert len(table) > 30
    for cell in table:
        room = ""
        for name in re.findall(r"`([\w./]+\.(?:py|sbatch))`", cell):
            room = name.rpartition("/")[0] or room
            assert any((ROOT / top / room / Path(name).name).exists() for top in ("llava_train", ".")), (cell, name)
