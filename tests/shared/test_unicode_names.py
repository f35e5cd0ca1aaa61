"""What is said of a path that is not what it should be."""

from __future__ import annotations

import unicodedata

from llava_train.shared.unicode_names import other_form


def test_a_folder_is_not_called_another_form_of_its_own_name(tmp_path):
    assert other_form(tmp_path) == "; it is a folder"
    assert other_form(tmp_path / "gone.png") == ""
    (tmp_path / unicodedata.normalize("NFD", "é.png")).touch()
    assert "in another form of Unicode: rename it" in other_form(tmp_path / "é.png")
