"""What a run exports loads in transformers 4.57 and 5.x: every key, no weight drawn anew, equal logits, tokenizer."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stage_folders import STEP, write_stage
from transformers import AutoTokenizer, LlamaConfig, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from llava_train.model.files.tensor_names import older_module, older_name
from llava_train.model.hf_folder.weights import expected_specs
from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny, tiny_config, tiny_model
from llava_train.train.export.export import export_checkpoint

ADDED = ("<|extra_0|>", "<|extra_1|>")
TEXT = f"<|im_start|>user\n<image>\nIt's 12 degrees{ADDED[0]}.<|im_end|>\n{ADDED[1]}"
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resized(tied):
    """Two tokens more than the tokenizer had, and embedding rows to match, a number that is no multiple of 64."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(ADDED), special_tokens=True)
    config = tiny_config(tokenizer, tied=tied)
    config.text_config.vocab_size = len(tokenizer)
    return tiny_model(config), tokenizer


def llama():
    """A text model whose rope is scaled, which the majors read from different places."""
    tokenizer = byte_tokenizer()
    config = tiny_config(tokenizer, tied=False)
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(config.text_config, name) for name in (*shared, "num_key_value_heads")}
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3}
    config.text_config = LlamaConfig(**sizes, rope_parameters=rope, tie_word_embeddings=False)
    return tiny_model(config), tokenizer


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Folder, model as trained and tokenizer: written from slices of two ranks, and by a run of the command."""
    root = tmp_path_factory.mktemp("exports")
    made = {}
    for tied in (True, False):
        model, tokenizer = resized(tied)
        made |= {f"{'tied' if tied else 'untied'}-{name}": (model, tokenizer, dtype) for name, dtype in DTYPES.items()}
    made["llama"] = (*llama(), torch.float32)
    seen = {}
    for name, (model, tokenizer, dtype) in made.items():
        stage_dir = write_stage(root / name, model, tokenizer, 2, dtype=dtype)
        export_checkpoint(stage_dir, stage_dir / f"step-{STEP:08d}", root / name / "hf")
        cast = deepcopy(model).eval()
        for parameter in cast.parameters():  # not its buffers: those of the rope stay fp32
            parameter.data = parameter.data.to(dtype)
        seen[name] = SimpleNamespace(folder=root / name / "hf", model=cast, tokenizer=tokenizer)
    folder = run(root / "run") / "onevision/hf"
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    seen["run"] = SimpleNamespace(folder=folder, model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(folder))
    return seen


def run(folder):
    """Two bf16 steps from an untied checkpoint."""
    start = make_tiny(folder.with_name("start"), tied=False)
    words = [f"run.dir={folder}", f"model.init={start}", "~stages.projector", "stages.onevision.precision=bf16"]
    command = [sys.executable, "-m", "llava_train", "+recipe=tiny", *words]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return folder


@pytest.fixture(scope="module")
def loaded(major_path, exports, tmp_path_factory):
    """What that major's classes made of each folder."""
    major, path = major_path
    folder = tmp_path_factory.mktemp("loaded")
    torch.save({str(one.folder): (inputs(one), TEXT, TURNS) for one in exports.values()}, folder / "task.pt")
    environ = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("load_runs.py")
    subprocess.run([sys.executable, script, folder / "task.pt", folder / "out.pt"], env=environ, check=True)
    out = torch.load(folder / "out.pt", weights_only=False)
    assert out["version"].startswith(f"{major}.")
    return {name: out["loaded"][str(one.folder)] for name, one in exports.items()}


def inputs(one):
    """Two tiles of noise for an image of one tile, and 200 tokens: enough for a scaled rope to show."""
    config, generator = one.model.config, torch.Generator().manual_seed(0)
    pixels = torch.randn((2, 3, 28, 28), generator=generator).to(one.model.dtype)
    ids = torch.randint(0, 256, (1, 200), generator=generator)
    image = torch.full((1, 16 + 4 * 5), config.image_token_index)
    return {"input_ids": torch.cat([ids, image], 1), "pixel_values": pixels, "image_sizes": torch.tensor([[28, 28]])}


NAMES = ("tied-fp32", "tied-bf16", "untied-fp32", "untied-bf16", "llama", "run")


@pytest.mark.parametrize("name", NAMES)
def test_export_loads_whole_and_computes_the_same(loaded, exports, name):
    one, seen = exports[name], loaded[name]
    assert seen["problems"] == {"missing": [], "unexpected": [], "mismatched": []}
    assert seen["dtypes"] == {torch.bfloat16 if name.endswith("bf16") or name == "run" else torch.float32}
    assert seen["tied"] == name.startswith("tied")
    with torch.no_grad():
        expected = one.model(**inputs(one)).logits
    assert torch.equal(seen["logits"], expected)


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_template_and_ends_are_those_of_the_run(loaded, exports, name):
    tokenizer, seen = exports[name].tokenizer, loaded[name]
    assert seen["ids"] == seen["processor_ids"] == tokenizer(TEXT)["input_ids"]
    if name.startswith(("tied", "untied")):
        ids = tokenizer.convert_tokens_to_ids(list(ADDED))
        assert ids == [len(tokenizer) - 2, len(tokenizer) - 1]
        assert set(ids) <= set(seen["ids"])
        assert seen["logits"].shape[-1] == len(tokenizer)
    assert seen["rendered"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    )
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert seen["ends"] == ([end, pad], pad)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_an_export_is_checked_by_are_those_of_the_real_classes(major_path, loaded, exports, name):
    """The renaming rules and module names of 4.57 that stand in the proof, against that release itself."""
    own = list(expected_specs(LlavaOnevisionConfig.from_pretrained(exports[name].folder), torch.float32))
    older = major_path[0] == "4.57"
    assert sorted(loaded[name]["modules"]) == sorted(map(older_module, own) if older else own)
    if older:
        assert loaded[name]["renamed"] == {key: older_name(key) for key in loaded[name]["renamed"]}
        assert sorted(loaded[name]["renamed"].values()) == sorted(loaded[name]["modules"])
