"""The lines that a card and the end of a run print are lines that run."""

from pathlib import Path

import pytest

from llava_train.model.card import plain_lines, processor_lines, render_card
from llava_train.model.tiny import make_tiny

IMAGES = sorted((Path(__file__).parents[2] / "data/tiny/images").iterdir())


def test_plain_lines_answer(tmp_path, capsys):
    folder = make_tiny(tmp_path / "it's")
    exec(plain_lines(str(folder), str(IMAGES[0]), 'what "is" it?'), {})
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("lines", [plain_lines, processor_lines])
def test_lines_are_python_whatever_the_names(lines):
    compile(lines("it's a {folder}", 'a"b.png', "what's {this}?"), "lines", "exec")


def test_a_card_shows_both():
    card = {"recipe": "r", "stage": "s", "init": "i", "data": {}, "settings": {}, "figures": {}}
    shown = render_card(card, is_intermediate=False)
    assert plain_lines(".", "a.png", "What is shown?") in shown
    assert processor_lines(".", "a.png", "What is shown?") in shown
    assert "AutoProcessor" not in render_card(card, is_intermediate=True)
