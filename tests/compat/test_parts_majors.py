"""A model joined from parts, exported, loads whole and computes the same in transformers 4.57 and 5.x: every family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from onevision_reference import SINGLE, Ours
from part_folders import FAMILIES, LLAMA3_ROPE, write_parts

from llava_train.config.schema import VideoConfig
from llava_train.model.hf_folder.folder import write_checkpoint
from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
from llava_train.model.loading.load_model import load_model

WINDOW = 8
TEXTS = {"qwen": "<|im_start|>user\n<image>\nIt's 12 degrees.<|im_end|>\n", "plain": "<image>It's 12 degrees."}
TEXTS["vicuna"] = "<s> A chat. USER: <image> \nIt's 12 degrees. ASSISTANT: No.</s>"
# name of an export -> family and changes to its language model's config
EXPORTS = {name: (name, {}) for name in FAMILIES} | {"windowed": ("mistral", {"sliding_window": WINDOW})}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, SimpleNamespace]:
    """Each export with its inputs, the logits of the model before it was written, and its ids of a text."""
    root = tmp_path_factory.mktemp("exports")
    made = {}
    for name, (family, changes) in EXPORTS.items():
        joined = load_model(write_parts(root / f"{name}-parts", family, **changes), "fp32", root)
        config, template = joined.model.config, FAMILIES[family].template
        geometry = checkpoint_geometry(config)
        ours = Ours(joined.tokenizer, geometry, config.image_token_index, config.video_token_index)
        batch = ours.pack((SINGLE,))
        inputs = {
            "input_ids": batch.input_ids[None],
            "pixel_values": (batch.pixel_values.float() / 255 - 0.5) / 0.5,
            "image_sizes": torch.tensor(SINGLE.images),
        }
        with torch.no_grad():
            logits = joined.model(**inputs).logits
        preparation = Preparation(geometry, template, "front", VideoConfig(1.0, 4))
        card = {"recipe": "r", "stage": "s", "init": "i", "data": {}, "settings": {}, "figures": {}}
        tensors = joined.model.state_dict().items()
        write_checkpoint(root / name, tensors, config, joined.tokenizer, preparation, card)
        ids = joined.tokenizer(TEXTS[template], add_special_tokens=False)["input_ids"]
        made[name] = SimpleNamespace(folder=root / name, inputs=inputs, logits=logits, text=TEXTS[template], ids=ids)
    return made


@pytest.fixture(scope="module")
def other(major_path, exports, tmp_path_factory):
    """What a program under that major saw, export by export."""
    major, path = major_path
    folder = tmp_path_factory.mktemp("other")
    task = {
        "folders": {str(one.folder): one.inputs for one in exports.values()},
        "texts": {str(one.folder): one.text for one in exports.values()},
        "asked": str(exports["llama3"].folder),
        "cases": [],
        "lines": "",
    }
    torch.save(task, folder / "task.pt")
    script = Path(__file__).with_name("load_exports.py")
    subprocess.run(
        [sys.executable, script, folder / "task.pt", folder / "out.pt"],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    out = torch.load(folder / "out.pt", weights_only=False)
    assert out["version"].startswith(f"{major}.")
    return out["loaded"]


@pytest.mark.parametrize("name", EXPORTS)
def test_every_family_loads_whole_with_equal_logits_and_ids(other, exports, name):
    one = exports[name]
    seen = other[str(one.folder)]
    assert seen["problems"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    assert one.logits.std() > 0.1
    torch.testing.assert_close(seen["logits"], one.logits, rtol=0, atol=1e-4)
    assert seen["ids"] == one.ids


def test_the_window_matters_to_the_logits(exports):
    assert (exports["windowed"].logits[0, WINDOW:] - exports["mistral"].logits[0, WINDOW:]).abs().max() > 0.1


@pytest.mark.parametrize("name", EXPORTS)
def test_config_says_what_either_major_reads(exports, name):
    family, changes = EXPORTS[name]
    wanted, folder = FAMILIES[family], exports[name].folder
    config, generation = (json.loads((folder / f"{kind}config.json").read_text()) for kind in ("", "generation_"))
    text, rope = config["text_config"], wanted.config.rope_parameters
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == rope["rope_theta"]
    assert (config["image_token_index"], config["video_token_index"]) == (wanted.image_id, wanted.image_id + 1)
    assert text["vocab_size"] == wanted.joined_rows
    assert config["tie_word_embeddings"] == text["tie_word_embeddings"] == wanted.config.tie_word_embeddings
    assert text.get("head_dim") == getattr(wanted.config, "head_dim", None)
    assert text.get("sliding_window") == changes.get("sliding_window", getattr(wanted.config, "sliding_window", None))
    scaling = {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}
    assert text.get("rope_scaling") == (scaling if family == "llama3" else None)
    assert 0 <= generation["pad_token_id"] < wanted.rows
    assert all(0 <= end < wanted.rows for end in generation["eos_token_id"])
    assert str(folder.parent) not in (folder / "config.json").read_text()
