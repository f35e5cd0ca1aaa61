"""A stage with adapters: packs, ranks and ZeRO change nothing, it resumes bit for bit, what it writes is one model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from test_equivalence import FOUR_PACKS, SETTINGS, ZERO
from transformers import LlavaOnevisionForConditionalGeneration as Model

from llava_train.data.samples.sample import Sample, Turn
from llava_train.evaluate.answerer import Answerer
from llava_train.family.onevision.family import OneVision
from llava_train.model.hf_folder.usage_lines import adapter_lines, plain_lines
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.model.prepare.adapter import attach_adapter

KINDS = {
    "lora": "stages.onevision.learning_rate.vision_tower=frozen "
    "+stages.onevision.lora={language_model:{rank:4,alpha:8}} ",
    "dora": "+stages.onevision.lora={language_model:{rank:4,alpha:8,dora:true},"
    "vision_tower:{rank:2,alpha:2,dora:true},projector:{rank:3,alpha:6,targets:[linear_1],dora:true}} ",
    "rslora": "stages.onevision.learning_rate={vision_tower:1e-3,projector:frozen} "
    "+stages.onevision.lora={language_model:{rank:4,alpha:8,targets:[q_proj,v_proj],rslora:true,init:orthogonal}} "
    "stages.onevision.image.max_tiles=2 ",
}
ONE_EACH = "stages.onevision.pack.max_tokens=1 stages.onevision.pack.max_tiles=1 "


def outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    lines = [json.loads(line) for line in (folder / "onevision/metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(folder / "onevision/adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def apart(tmp_path_factory, torchrun):
    """By kind, the folder of a run in one process, one sample per micro-batch, without ZeRO."""
    folder = tmp_path_factory.mktemp("apart")
    words = [f"run.dir={folder / kind} {SETTINGS} {ZERO['zero0']} {ONE_EACH} {KINDS[kind]}" for kind in KINDS]
    torchrun(1, "run_worker.py", *words)
    return {kind: folder / kind for kind in KINDS}


def test_packs_ranks_and_zero_change_nothing(torchrun, tmp_path, apart):
    cases = [(kind, zero) for kind in KINDS for zero in (ZERO if kind == "lora" else ("zero2", "zero3"))]
    words = [f"run.dir={tmp_path / k / z} {SETTINGS} {FOUR_PACKS} {ZERO[z]} {KINDS[k]}" for k, z in cases]
    torchrun(2, "run_worker.py", *words)
    for kind, zero in cases:
        losses, weights = outcome(apart[kind])
        ours, adapter = outcome(tmp_path / kind / zero)
        assert len(set(losses)) == 4
        assert ours == pytest.approx(losses, rel=1e-5), (kind, zero)
        assert adapter.keys() == weights.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(adapter[key], tensor, rtol=0, atol=2e-6, msg=f"{kind} {zero} {key}")


def test_a_resumed_run_is_the_unbroken_one(torchrun, tmp_path):
    kind = KINDS["lora"].replace("alpha:8", "alpha:8,dropout:0.2")
    words = f"run.dir={tmp_path} {SETTINGS} {FOUR_PACKS} {ZERO['zero2']} {kind} stages.onevision.checkpoint.keep=4"
    torchrun(1, "run_worker.py", words)
    losses, adapter = outcome(tmp_path)
    stage = tmp_path / "onevision"
    for name in ("step-00000003", "step-00000004", "adapter", "hf"):
        shutil.rmtree(stage / name)
    (stage / "finished.json").unlink()
    torchrun(1, "run_worker.py", words)
    again, resumed = outcome(tmp_path)
    assert again == losses
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in adapter.items())


@pytest.mark.parametrize("kind", KINDS)
def test_peft_merged_and_our_own_are_one_model(apart, kind):
    stage = apart[kind] / "onevision"
    base = apart[kind] / "tiny"
    peft = PeftModel.from_pretrained(Model.from_pretrained(base), stage / "adapter").eval()
    ours = Model.from_pretrained(base).eval()
    attach_adapter(ours, stage / "adapter")
    inputs = an_image_and_words(ours)
    expected = peft(**inputs).logits
    assert torch.equal(ours(**inputs).logits, expected)
    torch.testing.assert_close(Model.from_pretrained(stage / "hf").eval()(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert (Model.from_pretrained(base).eval()(**inputs).logits - expected).abs().max() > 1e-2


def an_image_and_words(model: Model) -> dict[str, torch.Tensor]:
    config = model.config
    size = config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 2, 3, size, size, generator=generator)
    sizes = torch.tensor([[size, size]])
    features = model.get_image_features(pixels, image_sizes=sizes).pooler_output[0]
    ids = [1, *[config.image_token_index] * len(features), 5, 6, 7]
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels, "image_sizes": sizes}


def test_an_adapter_is_asked_with_the_grid_and_tiles_of_its_training(apart, tmp_path, capsys):
    """Trained on 2x2 tiles, features of two, upon a base of 3x3 and nine: by us, and by the lines of its card."""
    base, adapter, merged = (str(apart["rslora"] / name) for name in ("tiny", "onevision/adapter", "onevision/hf"))
    picture = str(tmp_path / "wide.png")
    Image.effect_noise((80, 90), 80).convert("RGB").save(picture)
    alone = tmp_path / "alone"  # as PEFT writes it
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(f"{adapter}/{name}", alone)
    question = Sample("1", "q", [Turn("human", "<image>\nWhat?"), Turn("gpt", "No.")], [Path(picture)], [], record="1")

    def loss(init: str, folder: str = "") -> float:
        [(found, _)] = Answerer(init, torch.device("cpu"), 10**6, 10.0, adapter=folder).losses([question], 1)
        return found

    assert loss(base, adapter) == pytest.approx(loss(merged), rel=1e-5)
    assert abs(loss(base, str(alone)) - loss(merged)) > 1e-3
    (alone / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(320))}))
    answers = [
        next(Answerer(base, torch.device("cpu"), 10**6, 10.0, adapter=folder).answers([question], 1, 9))
        for folder in (adapter, str(alone))
    ]
    assert [bool(answer) for answer in answers] == [True, False], "end tokens too are the adapter's own"
    said = []
    family = OneVision()
    for lines in (
        adapter_lines(family, base, adapter, picture, "What?"),
        plain_lines(family, merged, picture, "What?"),
    ):
        exec(lines, names := {})
        said.append((capsys.readouterr().out, len(names["features"])))
    assert said[0] == said[1]


def test_only_adapters_and_the_projector_are_trained(apart):
    keys = set(load_file(apart["lora"] / "onevision/step-00000004/weights-00000-of-00001.safetensors"))
    other = {key for key in keys if ".lora_" not in key}
    assert {key.rpartition(".")[0] for key in other} == {
        "model.multi_modal_projector.linear_1",
        "model.multi_modal_projector.linear_2",
    }
    assert all(key.startswith("model.language_model.") for key in keys - other)
    assert not list((apart["lora"] / "onevision/base").glob("*.safetensors"))


def test_a_changed_start_is_told_at_a_resume(torchrun, tmp_path):
    start, other, link = make_tiny(tmp_path / "start"), make_tiny(tmp_path / "other", seed=7), tmp_path / "link"
    link.symlink_to(start)
    words = f"run.dir={tmp_path} {SETTINGS} {FOUR_PACKS} {ZERO['zero0']} {KINDS['lora']} model.init={link}"
    torchrun(1, "run_worker.py", words)
    (tmp_path / "onevision/finished.json").unlink()
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(AssertionError, match=r"model\.init: run\.dir/start -> run\.dir/other"):
        torchrun(1, "run_worker.py", words)
    link.unlink()
    link.symlink_to(start)
    weights = start / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AssertionError, match=r"start/model.safetensors is not as it was written"):
        torchrun(1, "run_worker.py", words)
