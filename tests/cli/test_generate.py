"""`generate` asks as training asked."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from llava_train.cli.main import main
from llava_train.model.loading.tiny_model import make_tiny


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


def test_a_file_is_answered_as_single_prompts_are_and_not_twice(folder, tmp_path, capsys):
    model = f"model.init={folder / 'tiny'}"
    records = [{"prompt": "Hi"}, {"prompt": "What?", "images": ["c.png"]}, {"prompt": "What?", "image": "absent.png"}]
    (folder / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    words = [model, f"file={folder / 'p.jsonl'}", f"out={tmp_path / 'a.jsonl'}", "max_new_tokens=5"]
    assert main(["generate", *words]) == 2
    assert "record 2: missing file" in capsys.readouterr().err
    assert main(["generate", *words, "on_error=skip", "batch_size=3"]) == 0
    assert "1 could not be asked (1 missing file)" in capsys.readouterr().out
    answers = [json.loads(line)["answer"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert main(["generate", model, "prompt=What?", f"images=[{folder / 'c.png'}]", "max_new_tokens=5"]) == 0
    assert capsys.readouterr().out == f"{answers[1]}\n"
    assert main(["generate", *words, "on_error=skip", "do_sample=true"]) == 2
    assert "do_sample" in capsys.readouterr().err


def test_a_chat_answers_as_a_prompt_does(folder, capsys, monkeypatch):
    model = f"model.init={folder / 'tiny'}"
    assert main(["generate", model, "prompt=What?", f"images=[{folder / 'c.png'}]", "max_new_tokens=5"]) == 0
    answer = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/image {folder / 'c.png'}\nWhat?\nWhy?\n"))
    assert main(["generate", model, "chat=true", "max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith(f"(1 for your next question)\n{answer}")
