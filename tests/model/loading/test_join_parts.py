"""A language model and a vision tower joined: every family, its vocabulary, and what cannot be joined."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from onevision_reference import SINGLE, Ours
from part_folders import (
    FAMILIES,
    QWEN2_5_PLAIN,
    QWEN2_5_SPECIAL,
    TOWER,
    published_siglip,
    qwen2_5_tokenizer,
    siglip_tower,
    write_parts,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Siglip2VisionConfig, Siglip2VisionModel

from llava_train.config.schema import ModelConfig
from llava_train.costs.dims import num_tower_layers
from llava_train.family.towers import siglip_features
from llava_train.model.forward.attention import TILES, register
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.loading.load_model import load_model
from llava_train.shared.errors import ConfigError

TIED = ("qwen2", "qwen2.5", "llama3")


def parts(root: Path, tower=None, name: str = "qwen2", **changes) -> ModelConfig:
    model = write_parts(root, name, **changes)
    if tower is not None:
        tower.save_pretrained(model.vision_tower)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_keeps_its_weights_and_gets_rows_for_the_placeholders(tmp_path, name):
    family = FAMILIES[name]
    model = parts(tmp_path, name=name)
    joined = load_model(model, "fp32", tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(model.language_model, dtype=torch.float32)
    config, language_model = joined.model.config, joined.model.model.language_model
    embedding, head = language_model.embed_tokens.weight, joined.model.lm_head.weight
    assert len(alone.model.embed_tokens.weight) == family.rows
    assert (config.image_token_index, config.video_token_index) == (family.image_id, family.image_id + 1)
    assert joined.tokenizer("<image><video>", add_special_tokens=False)["input_ids"][-2:] == [
        family.image_id,
        family.image_id + 1,
    ]
    assert config.text_config.vocab_size == len(embedding) == len(head) == family.joined_rows
    assert language_model.embed_tokens.num_embeddings == joined.model.lm_head.out_features == family.joined_rows
    assert (head is embedding) == config.tie_word_embeddings == config.text_config.tie_word_embeddings == (name in TIED)

    before = dict(alone.model.state_dict()) | {"lm_head.weight": alone.lm_head.weight}
    after = dict(language_model.state_dict()) | {"lm_head.weight": head}
    for rows in ("embed_tokens.weight", "lm_head.weight"):
        old, new = after[rows].detach().split([family.rows, family.joined_rows - family.rows])
        after[rows] = old
        torch.testing.assert_close(new, before[rows].detach().mean(dim=0).expand_as(new))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["qwen3", "vicuna", "mistral", "llama3"])
def test_our_forward_equals_that_of_transformers(tmp_path, name):
    joined = load_model(parts(tmp_path, name=name), "fp32", tmp_path)
    config, hf_model = joined.model.config, joined.model
    ours = Ours(joined.tokenizer, checkpoint_geometry(config), config.image_token_index, config.video_token_index)
    batch = ours.pack((SINGLE,))
    pixels = (batch.pixel_values.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        sizes = torch.tensor(SINGLE.images)
        expected = hf_model(input_ids=batch.input_ids[None], pixel_values=pixels, image_sizes=sizes).logits[0]
        found = hf_model.lm_head(PackedForward(hf_model, ours.geometry).hidden_states(batch))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_qwen2_5_tokens_stay_and_the_placeholders_come_after_them(tmp_path):
    joined = load_model(parts(tmp_path, name="qwen2.5"), "fp32", tmp_path)
    before = qwen2_5_tokenizer()
    tokens = (*QWEN2_5_SPECIAL, *QWEN2_5_PLAIN)
    assert before.convert_tokens_to_ids(["<|object_ref_start|>", "<|object_ref_end|>"]) == [151_646, 151_647]
    assert before.convert_tokens_to_ids(list(tokens)) == list(range(151_646, 151_665))
    assert joined.tokenizer.get_vocab() == before.get_vocab() | {"<image>": 151_665, "<video>": 151_666}
    text = f"<|im_start|>{''.join(tokens)}It's 12.<|im_end|>"
    assert joined.tokenizer(text)["input_ids"] == before(text)["input_ids"]
    skipped = (joined.tokenizer.decode(ids, skip_special_tokens=True) for ids in ([151_646], [151_657], [151_665]))
    assert list(skipped) == ["", "<tool_call>", ""]


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_added_in_bf16_and_tied_as_before(tmp_path, tied):
    joined = load_model(parts(tmp_path, name="vicuna", tie_word_embeddings=tied), "bf16", tmp_path)
    head, embedding = joined.model.lm_head.weight, joined.model.model.language_model.embed_tokens.weight
    assert (head is embedding) == joined.model.config.tie_word_embeddings == tied
    assert head.dtype == embedding.dtype == torch.bfloat16
    assert len(head) == len(embedding) == 1088
    assert head.isfinite().all()
    assert embedding.isfinite().all()


def test_a_padding_token_learns_as_every_other_does(tmp_path):
    """Its embedding would get no gradient if the config named it, and it is often an end token as well."""
    joined = load_model(parts(tmp_path, name="vicuna"), "fp32", tmp_path)
    assert joined.model.config.text_config.pad_token_id is None
    embedding = joined.model.model.language_model.embed_tokens
    embedding(torch.tensor([0, 1])).sum().backward()
    assert embedding.weight.grad[:2].abs().sum(dim=1).tolist() == [64.0, 64.0]


def test_published_tower_gives_its_last_but_one_hidden_state(tmp_path):
    siglip = published_siglip()
    loaded = load_model(parts(tmp_path, siglip), "fp32", tmp_path)
    tower = loaded.model.model.vision_tower
    assert (len(tower.encoder.layers), tower.config.num_hidden_layers, tower.config.vision_use_head) == (2, 2, False)
    torch.testing.assert_close(features(loaded.model), hidden_states(siglip.vision_model)[-2])


def test_keys_that_are_dropped_on_purpose_are_not_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    load_model(parts(tmp_path, published_siglip()), "fp32", tmp_path)
    assert "UNEXPECTED" not in caplog.text


def test_vision_encoder_alone_with_its_head_is_cut_alike(tmp_path):
    """Under the names of transformers 4.57 and of 5."""
    siglip = published_siglip()
    model = parts(tmp_path, siglip)
    tower = Path(model.vision_tower)
    (tower / "model.safetensors").unlink()
    siglip.vision_model.config.save_pretrained(tower)
    weights = {name: tensor.clone() for name, tensor in siglip.vision_model.state_dict().items()}
    for prefix in ("vision_model.", ""):
        named = {prefix + name: tensor for name, tensor in weights.items()}
        save_file(named, tower / "model.safetensors", metadata={"format": "pt"})
        loaded = load_model(model, "fp32", tmp_path)
        torch.testing.assert_close(features(loaded.model), hidden_states(siglip.vision_model)[-2])


def test_tower_without_head_is_taken_whole(tmp_path):
    tower = siglip_tower()
    loaded = load_model(parts(tmp_path, tower), "bf16", tmp_path)
    expected = {name: tensor.bfloat16() for name, tensor in tower.state_dict().items()}
    torch.testing.assert_close(dict(loaded.model.model.vision_tower.state_dict()), expected)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.sources["vision_tower"].endswith("tower")
    assert loaded.sources["language_model"].endswith("lm")
    assert loaded.sources["projector"] == "new, seed 0"


def test_siglip2_of_one_resolution_sets_the_geometry(tmp_path):
    """Patches of 16 as SigLIP2's, which are of SigLIP's own types."""
    loaded = load_model(parts(tmp_path, published_siglip(image_size=64, patch_size=16)), "fp32", tmp_path)
    geometry = checkpoint_geometry(loaded.model.config)
    assert (geometry.tile_size, geometry.patch_size, geometry.side, len(geometry.grid)) == (64, 16, 4, 36)
    assert loaded.model.config.image_grid_pinpoints[1] == [64, 128]


def test_naflex_tower_is_refused_by_name(tmp_path):
    naflex = Siglip2VisionModel(Siglip2VisionConfig(**{k: v for k, v in TOWER.items() if k != "image_size"}))
    with pytest.raises(ConfigError, match=r"model\.vision_tower: .* siglip2_vision_model model: SigLIP2 NaFlex"):
        load_model(parts(tmp_path, naflex), "fp32", tmp_path)


def test_weights_that_do_not_fit_are_named(tmp_path):
    model = parts(tmp_path, name="qwen3")
    path = Path(model.language_model) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.self_attn.q_norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.language_model: .*missing: model\.layers\.1\.self_attn\.q_norm\.w"):
        load_model(model, "fp32", tmp_path)


def test_new_projector_is_drawn_from_the_seed(tmp_path):
    model = parts(tmp_path, siglip_tower())
    first, same, other = (load_model(model, "fp32", tmp_path, seed).model.model for seed in (1, 1, 2))
    assert torch.equal(first.image_newline, same.image_newline)
    assert torch.equal(first.multi_modal_projector.linear_2.weight, same.multi_modal_projector.linear_2.weight)
    assert not torch.equal(first.multi_modal_projector.linear_2.weight, other.multi_modal_projector.linear_2.weight)
    assert float(first.image_newline.detach().std()) == pytest.approx(1 / math.sqrt(64), rel=0.3)
    assert float(first.multi_modal_projector.linear_1.weight.detach().abs().max()) <= 1 / math.sqrt(32)


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(hf_model) -> torch.Tensor:
    register()
    hf_model.set_attn_implementation({"vision_config": TILES})
    return siglip_features(hf_model.model.vision_tower, pixels(), num_tower_layers(hf_model.config))


@torch.no_grad()
def hidden_states(vision_model) -> tuple[torch.Tensor, ...]:
    return vision_model((pixels().float() / 255 - 0.5) / 0.5, output_hidden_states=True).hidden_states
