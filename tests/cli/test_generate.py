"""`generate` asks as training asked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from llava_train.cli.generate import media_first, prompt_sample
from llava_train.cli.main import main
from llava_train.config.schema import GenerateConfig, GenerateModel
from llava_train.family.onevision.template import chat_template
from llava_train.model.tiny import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    for name, seed in (("a, b.png", 0), ("c.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    make_tiny(root / "tiny", tied=False)
    return root


@pytest.mark.parametrize("policy", ["front", "keep"])
@pytest.mark.parametrize("tags", [[], ["<image>"], ["<video>"], ["<image>", "<image>", "<video>"]])
@pytest.mark.parametrize("text", ["What?", "\nWhat?"])
def test_media_first_is_what_the_chat_template_renders(folder, policy, tags, text):
    content = [{"type": tag.strip("<>")} for tag in tags] + [{"type": "text", "text": text}]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=chat_template("qwen", policy), tokenize=False
    )
    assert f"<|im_start|>user\n{media_first(text, tags)}<|im_end|>\n" in rendered


def test_prompt_with_tags_is_taken_as_written():
    config = GenerateConfig(GenerateModel("x"), "one: <image>\ntwo: <image>", images=["a", "b"], system="Be brief.")
    sample = prompt_sample(config)
    assert [turn.text for turn in sample.turns] == ["Be brief.", "one: <image>\ntwo: <image>"]
    assert sample.turns[0].role == "system"


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
