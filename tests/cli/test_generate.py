"""`generate` asks as training asked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llava_train.cli.main import main
from llava_train.model.tiny import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    for name, seed in (("a, b.png", 0), ("c.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    make_tiny(root / "tiny", tied=False)
    return root


def test_answers_one_line_about_images(folder, capsys):
    words = [
        f"model.init={folder / 'tiny'}",
        "prompt=What's this, a cat?",
        f"images=['{folder / 'a, b.png'}',{folder / 'c.png'}]",
    ]
    assert main(["generate", *words, "max_new_tokens=5"]) == 0
    first = capsys.readouterr().out
    assert main(["generate", *words, "max_new_tokens=5"]) == 0
    assert capsys.readouterr().out == first
    assert first.strip()


def test_tags_without_media_are_told(folder, capsys):
    assert (
        main(["generate", f"model.init={folder / 'tiny'}", "prompt=<image> <image>", f"images=[{folder / 'c.png'}]"])
        == 2
    )
    assert "tag/media mismatch" in capsys.readouterr().err
