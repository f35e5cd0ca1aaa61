"""data/scripts/make_demo_parts.py, with a handful of steps."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from llava_train.config.schema import ModelConfig
from llava_train.model.loading.load_model import load_model


@pytest.fixture(scope="module")
def parts_script(script: ModuleType) -> ModuleType:
    module = importlib.import_module("make_demo_parts")
    vars(module).update(TOWER_STEPS=10, TEXT_STEPS=10, TEXT_BATCH=8)
    return module


@pytest.fixture(scope="module")
def parts(parts_script: ModuleType, folder: Path) -> Path:
    threads = torch.get_num_threads()
    for name in parts_script.PARTS:
        parts_script.make_part(name, folder, "made by this test", 3)
    torch.set_num_threads(threads)
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


@pytest.mark.parametrize("name", ["vision_tower", "language_model"])
def test_a_part_is_whole_or_absent_and_remembers_what_made_it(
    parts_script: ModuleType, parts: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    assert parts_script.is_made(parts / name, "made by this test")
    assert not parts_script.is_made(parts / name, "made by another script")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parts_script, "optimise", interrupted)
    for file in folder.glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    for pictures in ("digits", "shapes"):
        (tmp_path / pictures).symlink_to(folder / pictures)
    with pytest.raises(KeyboardInterrupt):
        parts_script.make_part(name, tmp_path, "made by this test", 3)
    assert not (tmp_path / "parts" / name).exists()


def test_finished_parts_are_not_made_again(
    parts_script: ModuleType,
    parts: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(parts_script, "fingerprint", lambda *_, **__: "made by this test")
    monkeypatch.setattr(sys, "argv", ["make_demo_parts.py", "--data", str(folder), "--seed", "3"])
    parts_script.main()
    assert "there already" in capsys.readouterr().out
