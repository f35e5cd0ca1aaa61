"""`convert` from the command line."""

from __future__ import annotations

import pytest
from original_format import source_model, write_full, write_tower

from llava_train.cli.main import help_text, main


@pytest.fixture
def folders(tmp_path):
    model = source_model()
    write_full(tmp_path / "original", model)
    write_tower(tmp_path / "tower", model)
    return tmp_path


def words(root, **changes) -> list[str]:
    named = {"original": "original", "out": "out", "vision_tower": "tower", **changes}
    return ["convert", *(f"{key}={root / name}" for key, name in named.items())]


def test_says_what_it_did_and_the_folder_answers(folders, capsys):
    assert main(words(folders)) == 0
    report = capsys.readouterr().out
    for part in ("kind: full", "language_model: ", "projector: 4 tensors", "vision_tower: ", "written to", "float32"):
        assert part in report
    assert main(["generate", f"model.init={folders / 'out'}", "prompt=What?", "max_new_tokens=3"]) == 0


def test_folders_are_checked_together_and_first(folders, capsys):
    assert main(words(folders, original="none", vision_tower="nowhere", out="tower")) == 2
    message = capsys.readouterr().err
    for part in ("3 errors", f"original: no folder {folders / 'none'}", "vision_tower: no folder", "is there already"):
        assert part in message
    assert sorted(path.name for path in folders.iterdir()) == ["original", "tower"]


def test_settings_are_checked_by_name(capsys):
    assert main(["convert", "+recipe=tiny", "orignal=a", "out="]) == 2
    message = capsys.readouterr().err
    for part in ("convert reads no recipe", "did you mean original?", "original: is not set", "out: is empty"):
        assert part in message


def test_help_names_the_verb_with_its_settings():
    [line] = [line for line in help_text().splitlines() if line.split()[:1] == ["convert"]]
    assert "original=DIR out=DIR" in line
