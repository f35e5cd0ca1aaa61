"""Config and tokenizer of a model, read without its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from llava_train.config.schema import ModelConfig
from llava_train.model.start.read_model import ModelSettings, read_model
from llava_train.shared.errors import ConfigError
from llava_train.text.placeholders import prepare_tokenizer

QWEN2 = Path(__file__).parents[2] / "golden" / "qwen2_tokenizer"
TOWER = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8}


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(QWEN2, tmp_path, dirs_exist_ok=True)
    return tmp_path


def write_config(folder: Path, **changes) -> None:
    config = {
        "model_type": "llava_onevision",
        "vision_config": TOWER,
        "text_config": {"model_type": "qwen2"},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({}, folder / "model.safetensors")


def test_a_checkpoint_is_read_from_its_config_and_tokenizer(folder):
    write_config(folder)
    settings, tokenizer = read_model(ModelConfig(str(folder), "", "", "auto"))
    assert settings == ModelSettings(32, 8, 151646, 151647)
    assert tokenizer("<image><video>")["input_ids"] == [151646, 151647]


def write_parts(folder: Path, tower: Path, kind: str, tower_kind: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (tower / "config.json").write_text(json.dumps({"model_type": tower_kind, "vision_config": TOWER}))
    for part in (folder, tower):
        save_file({}, part / "model.safetensors")


def test_parts_of_other_types_are_refused_together(folder, tmp_path_factory):
    tower = tmp_path_factory.mktemp("tower")
    write_parts(folder, tower, "a type of tomorrow", "clip")
    with pytest.raises(ConfigError) as caught:
        read_model(ModelConfig("", str(folder), str(tower), "auto"))
    assert [fault.key for fault in caught.value.faults] == ["model.language_model", "model.vision_tower"]


def test_parts_give_the_tower_and_new_tokens(folder, tmp_path_factory):
    tower = tmp_path_factory.mktemp("tower")
    write_parts(folder, tower, "qwen2", "siglip")
    settings, tokenizer = read_model(ModelConfig("", str(folder), str(tower), "auto"))
    assert settings == ModelSettings(32, 8, 151646, 151647)
    assert tokenizer("<video>")["input_ids"] == [151647]


def test_tokens_are_added_in_the_order_of_their_ids():
    tokenizer = AutoTokenizer.from_pretrained(QWEN2)
    prepare_tokenizer(tokenizer, 151647, 151646)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [151647, 151646]
    prepare_tokenizer(tokenizer, 151647, 151646)
    assert len(tokenizer) == 151648


def test_ids_that_differ_from_the_config_are_refused_together():
    tokenizer = AutoTokenizer.from_pretrained(QWEN2)
    with pytest.raises(ConfigError) as caught:
        prepare_tokenizer(tokenizer, 151645, 151650)
    assert [fault.key for fault in caught.value.faults] == ["model.init"] * 2
    assert "<image> has id 151646, config.json says image_token_index = 151645" in str(caught.value)
    assert "<video> has id 151647, config.json says video_token_index = 151650" in str(caught.value)


def test_other_model_and_missing_files_are_refused(folder, tmp_path_factory):
    write_config(folder, model_type="llava_next")
    with pytest.raises(ConfigError, match="llava_next model, not llava_onevision"):
        read_model(ModelConfig(str(folder), "", "", "auto"))
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ConfigError, match="has no config"):
        read_model(ModelConfig(str(empty), "", "", "auto"))
    write_config(empty, vision_config=TOWER | {"patch_size": "wide"})
    (empty / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ConfigError, match="no config can be read from"):
        read_model(ModelConfig(str(empty), "", "", "auto"))
    write_config(empty)
    with pytest.raises(ConfigError, match="no tokenizer can be read from"):
        read_model(ModelConfig(str(empty), "", "", "auto"))
