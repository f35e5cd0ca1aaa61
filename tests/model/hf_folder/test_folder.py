"""The exported folder: names, shards, wholeness, notes and card."""

from __future__ import annotations

import json
import weakref
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_templates import RELEASED, message
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from llava_train.cli.main import main
from llava_train.config.schema import GenerateModel, VideoConfig
from llava_train.data.samples.sample import Sample, Turn
from llava_train.evaluate.answerer import Answerer
from llava_train.family.base import VisualLayout
from llava_train.model.files.tensor_names import export_name
from llava_train.model.hf_folder import weights
from llava_train.model.hf_folder.folder import write_checkpoint
from llava_train.model.hf_folder.preparation import PREPARATION_FILE, Preparation, checkpoint_geometry, read_preparation
from llava_train.model.loading.load_model import load_checkpoint
from llava_train.model.loading.tiny_model import tiny_config, tiny_model
from llava_train.text.placeholders import add_tags

GOLDEN = Path(__file__).parents[2] / "golden"
CARD = {
    "recipe": "my_recipe",
    "stage": "stage_one",
    "init": "some/model",
    "data": {"captions": 1234},
    "settings": {"optimiser steps": "7"},
    "figures": {"loss": 0.123456},
}


def preparation(loaded, mode="anyres") -> Preparation:
    geometry = replace(checkpoint_geometry(loaded.model.config), mode=mode)
    return Preparation(geometry, "qwen", "keep", VideoConfig(2.0, 5))


def write(out, loaded, tensors=None, **changes):
    tensors = loaded.model.state_dict().items() if tensors is None else tensors
    write_checkpoint(out, tensors, loaded.model.config, loaded.tokenizer, preparation(loaded, **changes), CARD)


def test_names_are_those_of_the_older_major():
    """Written down from what transformers 4.57.6 saves."""
    assert export_name("model.vision_tower.post_layernorm.bias") == "vision_tower.vision_model.post_layernorm.bias"
    assert export_name("model.language_model.norm.weight") == "language_model.model.norm.weight"
    assert export_name("lm_head.weight") == "language_model.lm_head.weight"
    assert export_name("model.multi_modal_projector.linear_1.bias") == "multi_modal_projector.linear_1.bias"
    assert export_name("model.image_newline") == "image_newline"
    with pytest.raises(ValueError, match="audio"):
        export_name("model.audio.weight")


def test_shards_hold_what_one_file_holds(loaded, tmp_path, monkeypatch):
    write(tmp_path / "one", loaded)
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 100_000)
    write(tmp_path / "many", loaded)
    one = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files == sorted(set(index["weight_map"].values()))
    many = {}
    for file in files:
        shard = load_file(tmp_path / "many" / file)
        assert all(index["weight_map"][name] == file for name in shard)
        many |= shard
    torch.testing.assert_close(many, one)
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in one.values())
    assert load_checkpoint(GenerateModel(str(tmp_path / "many")), "auto").model.dtype == torch.float32


def test_tensors_are_taken_one_by_one(loaded, tmp_path, monkeypatch):
    """Each is in the file before the next is asked for, and no tensor that was written is still alive."""
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 100_000)
    on_disk, alive = [], []

    def stream():
        for name, tensor in loaded.model.state_dict().items():
            files = (tmp_path / ".out.writing").glob("*.safetensors")
            on_disk.append(sum(path.stat().st_size for path in files))
            assert sum(reference() is not None for reference in alive) <= 1
            tensor = tensor.clone()
            alive.append(weakref.ref(tensor))
            yield name, tensor

    write(tmp_path / "out", loaded, stream())
    sizes = [tensor.nbytes for tensor in loaded.model.state_dict().values()]
    assert on_disk[-1] >= sum(sizes[:-2])


def test_tensors_begin_where_kernels_can_use_them(loaded, tmp_path):
    write(tmp_path / "out", loaded)
    begin = (tmp_path / "out" / "model.safetensors").read_bytes()[:8]
    assert (8 + int.from_bytes(begin, "little")) % 64 == 0


def test_tensors_may_come_in_another_order(loaded, tmp_path):
    write(tmp_path / "one", loaded)
    write(tmp_path / "other", loaded, reversed(loaded.model.state_dict().items()))
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "mixed"])
def test_wrong_weights_leave_the_folder_as_it_was(loaded, tmp_path, fault):
    write(tmp_path / "out", loaded)
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    tensors = dict(loaded.model.state_dict())
    name = "model.language_model.norm.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "unknown":
        name = "model.language_model.norm.bias"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = torch.zeros(3) if fault == "shape" else tensors[name].bfloat16()
    with pytest.raises(ValueError, match=name):
        write(tmp_path / "out", loaded, tensors.items())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_notes_come_back(loaded, tmp_path):
    write(tmp_path / "out", loaded, mode="square")
    again = load_checkpoint(GenerateModel(str(tmp_path / "out")), "auto")
    assert read_preparation(str(tmp_path / "out"), again.model.config) == preparation(loaded, "square")
    (tmp_path / "out" / PREPARATION_FILE).unlink()
    released = read_preparation(str(tmp_path / "out"), again.model.config)
    assert (released.template, released.tag_policy, released.video) == ("qwen", "front", VideoConfig(1.0, 32))
    assert released.geometry.mode == "anyres"


def test_config_holds_the_geometry_and_both_forms_of_rope(loaded, tmp_path):
    geometry = replace(checkpoint_geometry(loaded.model.config), grid=((1, 2), (2, 1)), max_tiles=4)
    notes = Preparation(geometry, "qwen", "front", VideoConfig(1.0, 4))
    state = {name: tensor.bfloat16() for name, tensor in loaded.model.state_dict().items()}
    write_checkpoint(tmp_path / "out", state.items(), loaded.model.config, loaded.tokenizer, notes, CARD)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_grid_pinpoints"] == [[28, 56], [56, 28]]
    assert config["vision_aspect_ratio"] == "anyres_max_4"
    assert config["dtype"] == "bfloat16"
    assert config["text_config"]["rope_theta"] == config["text_config"]["rope_parameters"]["rope_theta"] == 1e6
    assert checkpoint_geometry(load_checkpoint(GenerateModel(str(tmp_path / "out")), "auto").model.config) == geometry
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    ids = [loaded.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert ends == {"eos_token_id": ids, "pad_token_id": ids[1]}


def test_a_base_models_answers_end_where_they_were_trained_to(loaded, tmp_path):
    base = deepcopy(loaded.tokenizer)
    base.eos_token = "<|endoftext|>"
    notes = Preparation(checkpoint_geometry(loaded.model.config), "qwen", "front", VideoConfig(1.0, 4))
    write_checkpoint(tmp_path / "out", loaded.model.state_dict().items(), loaded.model.config, base, notes, CARD)
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert base.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]


def export_vicuna(out, **options):
    """A tiny model with the Llama tokenizer of the golden cases."""
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "llama_tiny_tokenizer", **options)
    add_tags(tokenizer)
    model = tiny_model(tiny_config(tokenizer))
    notes = Preparation(checkpoint_geometry(model.config), "vicuna", "front", VideoConfig(1.0, 4))
    write_checkpoint(out, model.state_dict().items(), model.config, tokenizer, notes, CARD)
    return tokenizer


def test_vicuna_export_tokenises_its_own_text_as_training_did(tmp_path):
    tokenizer = export_vicuna(tmp_path / "out")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # ours is left as it was
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    case = json.loads((GOLDEN / "labels_vicuna_v1.json").read_text())["cases"][1]
    roles = {"human": "user", "gpt": "assistant"}
    turns = [{"role": roles[t["from"]], "content": t["value"]} for t in case["after_preprocess_multimodal"]]
    expected = [exported.convert_tokens_to_ids("<image>") if i == -200 else i for i in case["input_ids"]]
    text = exported.apply_chat_template(turns, tokenize=False)
    assert exported(text)["input_ids"] == expected
    assert exported(text, add_special_tokens=False)["input_ids"] == expected
    assert exported.apply_chat_template(turns, return_dict=True)["input_ids"] == expected
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert ends == {"eos_token_id": [exported.convert_tokens_to_ids("</s>")], "pad_token_id": 0}


@pytest.mark.parametrize("legacy", [True, False])
def test_vicuna_export_splits_after_an_end_as_its_tokenizer_did(tmp_path, legacy):
    tokenizer = export_vicuna(tmp_path / "out", legacy=legacy)
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = exported("a</s>USER")["input_ids"]
    assert ids == tokenizer("a</s>USER", add_special_tokens=False)["input_ids"]
    assert (ids[-1] == 681) == legacy  # one piece, as in the legacy rows of the golden cases
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (config["legacy"], config["add_bos_token"]) == (legacy, False)  # 4.57 looks here alone


def test_vicuna_export_is_asked_in_its_own_template(tmp_path, monkeypatch, capsys):
    export_vicuna(tmp_path / "out")
    answerer = Answerer(str(tmp_path / "out"), torch.device("cpu"), 10**6, 1.0)
    sample = Sample("i", "s", [Turn("human", "<image>\nWhat is shown?")], ["a.png"])
    prompt = answerer._encoder.encode_prompt(sample, [VisualLayout("square", 8, 8, (1, 1), 1, 1)])
    asked = answerer.tokenizer.decode(prompt.input_ids)
    assert asked.endswith("<image> \nWhat is shown? ASSISTANT:")
    lines_answer_as_generate_does(tmp_path / "out", monkeypatch, capsys)


def test_export_of_template_checkpoint_carries_its_text_and_is_asked_by_it(loaded, tmp_path):
    tokenizer, out = deepcopy(loaded.tokenizer), tmp_path / "out"
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = RELEASED + "{#\r\n \u2603#}"
    notes = Preparation(checkpoint_geometry(loaded.model.config), "checkpoint", "keep", VideoConfig(1.0, 4))
    write_checkpoint(out, loaded.model.state_dict().items(), loaded.model.config, tokenizer, notes, CARD)
    assert (out / "chat_template.jinja").read_bytes() == tokenizer.chat_template.encode()
    assert read_preparation(str(out), loaded.model.config) == notes
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    answerer = Answerer(str(out), torch.device("cpu"), 10**6, 1.0)
    sample = Sample("i", "s", [Turn("human", "See <image>\nWhat?"), Turn("gpt", "-")], ["a.png"])
    prompt = answerer._encoder.encode_prompt(sample, [VisualLayout("square", 8, 8, (1, 1), 1, 1)])
    messages = [message("user", "See ", "<image>", "What?")]
    exported = AutoTokenizer.from_pretrained(out)
    asked = exported.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == "<|im_start|>user <image>\nSee \nWhat?<|im_end|><|im_start|>assistant\n"
    assert prompt.input_ids.tolist() == exported(asked)["input_ids"]


def test_card_tells_recipe_data_and_figures(loaded, tmp_path):
    write(tmp_path / "full", loaded)
    card = (tmp_path / "full" / "README.md").read_text()
    for text in (
        "library_name: transformers",
        "my_recipe",
        "stage_one",
        "some/model",
        "| captions | 1,234 |",
        "0.1235",
    ):
        assert text in card
    assert "AutoProcessor" in card
    assert "What is shown?" in card
    assert "intermediate" not in card
    write(tmp_path / "first", loaded, mode="square")
    assert "is an intermediate of its recipe" in (tmp_path / "first" / "README.md").read_text()


def test_lines_of_the_card_answer_as_generate_does(loaded, tmp_path, monkeypatch, capsys):
    write(tmp_path / "out", loaded)
    lines_answer_as_generate_does(tmp_path / "out", monkeypatch, capsys)


def lines_answer_as_generate_does(out, monkeypatch, capsys):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    picture.save(out / "a.png")
    monkeypatch.chdir(out)
    lines = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(lines, {})
    by_card = capsys.readouterr().out.strip()
    assert main(["generate", "model.init=.", "prompt=What is shown?", "images=[a.png]", "max_new_tokens=64"]) == 0
    assert by_card
    assert by_card == capsys.readouterr().out.strip()
