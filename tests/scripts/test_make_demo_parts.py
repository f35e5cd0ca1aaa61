"""data/scripts/make_demo_parts.py, with a handful of steps."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from llava_train.config.schema import ModelConfig
from llava_train.model.build import load_model


@pytest.fixture(scope="module")
def parts_script(script: ModuleType) -> ModuleType:
    module = importlib.import_module("make_demo_parts")
    vars(module).update(TOWER_STEPS=10, TEXT_STEPS=10, TEXT_BATCH=8)
    return module


@pytest.fixture(scope="module")
def parts(parts_script: ModuleType, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_demo_parts.py", "--data", str(folder), "--seed", "3"])
        parts_script.main()
    return folder / "parts"


def test_a_model_starts_from_the_parts(parts: Path, tmp_path: Path):
    model = ModelConfig("", str(parts / "language_model"), str(parts / "vision_tower"), "auto")
    loaded = load_model(model, "fp32", tmp_path)
    assert loaded.tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [
        loaded.model.config.image_token_id,
        loaded.model.config.video_token_id,
    ]
    assert all(torch.isfinite(parameter).all() for parameter in loaded.model.parameters())


def test_words_of_the_demo_are_single_tokens(parts_script: ModuleType, folder: Path):
    tokenizer = parts_script.make_tokenizer(folder)
    frame = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    told = ["<|im_start|>", "system", "\n", "You", " are", " a", " helpful", " assistant", ".", "<|im_end|>", "\n"]
    assert [tokenizer.decode([token]) for token in tokenizer.encode(frame)] == told
    assert len(tokenizer.encode("list the digits in order.")) == 6
    assert tokenizer.eos_token == "<|im_end|>"


def test_only_training_pictures_are_read(parts_script: ModuleType, folder: Path):
    pictures = parts_script.caption_words(folder)
    assert len(pictures) == 7542
    assert {name.split("/")[1] for name in pictures} == {"train"}


def test_told_captions_supervise_the_caption_alone(parts_script: ModuleType, folder: Path):
    tokenizer = parts_script.make_tokenizer(folder)
    rng = parts_script.random.Random(0)
    for document in parts_script.told_captions(folder, tokenizer, 20, rng):
        supervised = tokenizer.decode(document.labels[document.labels >= 0])
        shown = tokenizer.decode(document.input_ids[document.labels < 0])
        assert supervised.startswith("a ")
        assert supervised.endswith(".\n")
        assert set(shown.split()) == set(parts_script.told_words(supervised.strip()))


def test_a_finished_part_is_not_made_again(
    parts_script: ModuleType, parts: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def forbidden(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(parts_script, "train_tower", forbidden)
    monkeypatch.setattr(parts_script, "train_language_model", forbidden)
    monkeypatch.setattr(sys, "argv", ["make_demo_parts.py", "--data", str(folder), "--seed", "3"])
    parts_script.main()
    (folder / "made_by.json").write_text('{"seed": 4}')
    with pytest.raises(AssertionError):
        parts_script.main()
    (folder / "made_by.json").write_text("{}")
