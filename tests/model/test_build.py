"""Loading: a checkpoint or two parts, strictly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from llava_train.config.errors import ConfigError
from llava_train.config.schema import ModelConfig
from llava_train.model.build import load_model
from llava_train.model.onevision import PackedForward
from llava_train.model.tiny import byte_tokenizer

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}


def parts(root: Path, tower, vocabulary: int = 320, tied: bool = True) -> ModelConfig:
    torch.manual_seed(0)
    text = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    Qwen2ForCausalLM(text).save_pretrained(root / "lm")
    byte_tokenizer().save_pretrained(root / "lm")
    tower.save_pretrained(root / "tower")
    return ModelConfig("", str(root / "lm"), str(root / "tower"), "auto")


def published_siglip() -> SiglipModel:
    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=TOWER))


@pytest.mark.parametrize("tied", [True, False])
def test_published_tower_gives_its_last_but_one_hidden_state(tmp_path, tied):
    siglip = published_siglip()
    loaded = load_model(parts(tmp_path, siglip, tied=tied), "fp32", tmp_path)
    tower = loaded.model.model.vision_tower
    assert (len(tower.encoder.layers), tower.config.num_hidden_layers, tower.config.vision_use_head) == (2, 2, False)
    forward = PackedForward(loaded.model, geometry=None)
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        ours = forward.tower_features(pixels)
        whole = siglip.vision_model(pixels / 127.5 - 1, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours, whole[-2])
    head, embedding = loaded.model.lm_head.weight, loaded.model.model.language_model.embed_tokens.weight
    assert (head is embedding) == tied
    assert loaded.model.config.tie_word_embeddings == loaded.model.config.text_config.tie_word_embeddings == tied


def test_tower_without_head_is_taken_whole(tmp_path):
    tower = SiglipVisionModel(SiglipVisionConfig(**TOWER, vision_use_head=False))
    loaded = load_model(parts(tmp_path, tower), "bf16", tmp_path)
    expected = {name: tensor.bfloat16() for name, tensor in tower.state_dict().items()}
    torch.testing.assert_close(dict(loaded.model.model.vision_tower.state_dict()), expected)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.sources["vision_tower"].endswith("tower")
    assert loaded.sources["language_model"].endswith("lm")
    assert loaded.sources["projector"] == "new, seed 0"


def test_new_projector_is_drawn_from_the_seed(tmp_path):
    model = parts(tmp_path, SiglipVisionModel(SiglipVisionConfig(**TOWER, vision_use_head=False)))
    first, same, other = (load_model(model, "fp32", tmp_path, seed).model.model for seed in (1, 1, 2))
    assert torch.equal(first.image_newline, same.image_newline)
    assert torch.equal(first.multi_modal_projector.linear_2.weight, same.multi_modal_projector.linear_2.weight)
    assert not torch.equal(first.multi_modal_projector.linear_2.weight, other.multi_modal_projector.linear_2.weight)
    assert float(first.image_newline.detach().std()) == pytest.approx(1 / math.sqrt(64), rel=0.3)
    assert float(first.multi_modal_projector.linear_1.weight.detach().abs().max()) <= 1 / math.sqrt(32)


def test_no_room_for_the_placeholders_is_told(tmp_path):
    model = parts(tmp_path, SiglipVisionModel(SiglipVisionConfig(**TOWER, vision_use_head=False)), vocabulary=260)
    with pytest.raises(ConfigError, match=r"model\.language_model: 260 embedding rows hold no <image> and <video>"):
        load_model(model, "fp32", tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("image_newline"), "missing: model.image_newline"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda w: w.update(image_newline=torch.zeros(3)), "of another shape: model.image_newline"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_keys_that_do_not_fit_are_named(tiny_folder, tmp_path, change, told):
    folder = copy_of(tiny_folder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=told):
        load_model(ModelConfig(str(folder), "", "", "auto"), "fp32", tmp_path)


def test_pickled_weights_are_not_read(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(ModelConfig(str(folder), "", "", "auto"), "fp32", tmp_path)


def test_tiny_is_made_once_and_is_the_same_everywhere(tmp_path):
    tiny = ModelConfig("tiny", "", "", "auto")
    first, again = (load_model(tiny, "fp32", tmp_path / "cache").model for _ in range(2))
    elsewhere = load_model(tiny, "fp32", tmp_path / "other").model
    torch.testing.assert_close(dict(first.state_dict()), dict(again.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(dict(first.state_dict()), dict(elsewhere.state_dict()), rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
