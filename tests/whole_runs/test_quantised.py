"""Adapters on a quantised language model: ranks and ZeRO change nothing, it resumes, it merges into plain weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_adapters import KINDS, ONE_EACH, outcome
from test_equivalence import FOUR_PACKS, SETTINGS, ZERO

from llava_train.config.schema import GenerateModel
from llava_train.model.loading.load_model import load_checkpoint
from llava_train.model.prepare.adapter import attach_adapter

KEEP = "stages.onevision.checkpoint.keep=4"
LOADS = {name: f"stages.onevision.load_in={name} {KINDS['lora']} {KEEP}" for name in ("4bit", "8bit")}
FROZEN = "stages.onevision.load_in=4bit stages.onevision.learning_rate={vision_tower:frozen,language_model:frozen}"
SCALE = 8 / 4  # alpha / rank
PEFT = "base_model.model."
DOWN = "model.language_model.layers.0.mlp.down_proj"  # 64 x 128


@pytest.fixture(scope="module")
def apart(tmp_path_factory, torchrun):
    """By `load_in`, the folder of a run in one process, one sample per micro-batch, without ZeRO."""
    folder = tmp_path_factory.mktemp("apart")
    loads = LOADS | {"frozen": FROZEN}
    words = [f"run.dir={folder / name} {SETTINGS} {ZERO['zero0']} {ONE_EACH} {load}" for name, load in loads.items()]
    torchrun(1, "run_worker.py", *words)
    return {name: folder / name for name in loads}


def test_ranks_and_zero_change_nothing(torchrun, tmp_path, apart):
    holds = {
        ("4bit", "zero2"): "Linear4bit torch.uint8 4096",
        ("4bit", "zero3_offload"): "Linear4bit torch.uint8 2048",
        ("8bit", "zero2"): "Linear8bitLt torch.int8 8192",
    }
    words = [f"run.dir={tmp_path / n / z} {SETTINGS} {FOUR_PACKS} {ZERO[z]} {LOADS[n]}" for n, z in holds]
    printed = torchrun(2, "quantized_worker.py", *words)
    told = [line.removeprefix("HOLDS ") for line in printed.splitlines() if line.startswith("HOLDS ")]
    assert told == list(holds.values())
    for name, zero in holds:
        losses, weights = outcome(apart[name])
        ours, adapter = outcome(tmp_path / name / zero)
        assert len(set(losses)) == 4
        assert ours == pytest.approx(losses, rel=1e-5), (name, zero)
        for key, tensor in weights.items():
            torch.testing.assert_close(adapter[key], tensor, rtol=0, atol=2e-6, msg=f"{name} {zero} {key}")


def test_a_frozen_quantised_part_leaves_as_it_came(apart):
    stage = apart["frozen"] / "onevision"
    start, trained = (load_file(folder / "model.safetensors") for folder in (apart["frozen"] / "tiny", stage / "hf"))
    changed = {key for key in start if not torch.equal(start[key], trained[key])}
    assert {key.partition(".")[0] for key in changed} == {"multi_modal_projector"}


@pytest.mark.parametrize("name", ["4bit", "8bit"])
def test_the_adapter_is_merged_into_the_plain_start(apart, name):
    stage = apart[name] / "onevision"
    start, merged = (load_file(folder / "model.safetensors") for folder in (apart[name] / "tiny", stage / "hf"))
    adapter = load_file(stage / "adapter/adapter_model.safetensors")
    a, b = (adapter[f"{PEFT}{DOWN}.lora_{which}.weight"] for which in "AB")
    key = DOWN.replace("model.language_model.", "language_model.model.") + ".weight"
    torch.testing.assert_close(merged[key], start[key] + SCALE * b @ a, rtol=0, atol=1e-6)
    assert (merged[key] - start[key]).abs().max() > 1e-4
    assert not list((stage / "base").glob("*.safetensors"))
    assert "quantization_config" not in (stage / "hf/config.json").read_text()
    changed = {key for key in start if not torch.equal(start[key], merged[key])}
    assert all("_proj.weight" in key or key.startswith("multi_modal_projector.") for key in changed), changed


@pytest.mark.parametrize("name", ["4bit", "8bit"])
def test_the_adapter_attaches_to_the_quantised_start(apart, name):
    folder = apart[name] / "onevision/adapter"
    model = load_checkpoint(GenerateModel(str(apart[name] / "tiny")), torch.float32, name).model
    attach_adapter(model, folder)
    layer = model.get_submodule(DOWN).eval()
    a, b = (load_file(folder / "adapter_model.safetensors")[f"{PEFT}{DOWN}.lora_{which}.weight"] for which in "AB")
    added = (layer(torch.eye(128)) - layer.base_layer(torch.eye(128))).T
    torch.testing.assert_close(added, SCALE * b @ a, rtol=0, atol=1e-5)


def test_a_resumed_run_is_the_unbroken_one(torchrun, tmp_path, apart):
    losses, adapter = outcome(apart["4bit"])
    folder = shutil.copytree(apart["4bit"], tmp_path / "resumed")
    stage = folder / "onevision"
    for name in ("step-00000003", "step-00000004", "adapter", "hf"):
        shutil.rmtree(stage / name)
    (stage / "finished.json").unlink()
    torchrun(1, "run_worker.py", f"run.dir={folder} {SETTINGS} {ZERO['zero0']} {ONE_EACH} {LOADS['4bit']}")
    again, resumed = outcome(folder)
    assert again == losses
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in adapter.items())
