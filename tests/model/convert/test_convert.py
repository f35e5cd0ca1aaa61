"""Checkpoints of the original trainer: whatever their form, the model that comes out is the one that went in."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from original_format import (
    original_config,
    original_name,
    original_state,
    source_model,
    write_config,
    write_full,
    write_language_model,
    write_state,
    write_tokenizer,
    write_tower,
)
from peft import LoraConfig, get_peft_model
from start_table import POINTER
from transformers import AutoTokenizer

from llava_train.config.schema import ConvertConfig, GenerateModel
from llava_train.model.convert.convert import convert, plan
from llava_train.model.convert.original import read_pixels
from llava_train.model.hf_folder.preparation import checkpoint_geometry, read_preparation
from llava_train.model.loading.load_model import load_checkpoint
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.shared.errors import ConfigError

PROJECTOR = "model.multi_modal_projector."


@pytest.fixture(scope="module")
def model():
    return source_model()


def settings(root: Path, **folders: str | Path) -> ConvertConfig:
    named = {"original": root / "original", **folders}
    return ConvertConfig(out=str(root / "out"), **{key: str(folder) for key, folder in named.items()})


def converted(root: Path, **folders: str | Path):
    """The report, and the model read back."""
    report = convert(settings(root, **folders))
    return "\n".join(f"{name}: {text}" for name, text in report.items()), load_checkpoint(
        GenerateModel(str(root / "out")), "auto"
    ).model.eval()


def told(root: Path, **folders: str | Path) -> str:
    """What is wrong; nothing is left behind."""
    before = sorted(root.iterdir())
    with pytest.raises(ConfigError) as error:
        convert(settings(root, **folders))
    assert sorted(root.iterdir()) == before
    return str(error.value)


def same(model, other) -> None:
    same_weights(model, other)
    assert torch.equal(logits(model), logits(other))


def same_weights(model, other) -> None:
    expected, found = dict(model.named_parameters()), dict(other.named_parameters())
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@torch.no_grad()
def logits(model) -> torch.Tensor:
    """Of a text with one image of one tile: an overview of 16 tokens, then 4 rows of 4 and a newline."""
    generator = torch.Generator().manual_seed(1)
    image_id = model.config.image_token_index
    input_ids = torch.tensor([[5, 6, *[image_id] * 36, 7, 8]])
    pixels = torch.randn(1, 2, 3, 28, 28, generator=generator)
    return model(input_ids=input_ids, pixel_values=pixels, image_sizes=torch.tensor([[28, 28]])).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("suffix", "num_files"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 2)])
def test_whole_model_comes_back_bit_for_bit(tmp_path, tied, suffix, num_files):
    model = source_model(tied)
    folder = write_config(tmp_path / "original", original_config(model))
    write_tokenizer(folder)
    write_state(folder, original_state(model), suffix, num_files)
    write_tower(tmp_path / "tower", source_model(seed=9))
    report, found = converted(tmp_path, vision_tower=tmp_path / "tower")
    same(model, found)
    assert found.config.tie_word_embeddings == tied
    assert "kind: full" in report
    assert "tower gave the tower's config alone" in report
    card = (tmp_path / "out" / "README.md").read_text()
    assert "LLaVA-OneVision converted by llava_train from original." in card
    assert "4 tensors from original (4 float32)" in card
    assert str(tmp_path) not in card  # it tells nothing of the machine
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{total:,} parameters in float32" in report
    assert found.config.text_config.rope_parameters["rope_theta"] == 1e6


def test_tower_comes_from_its_folder_where_the_checkpoint_has_none(model, tmp_path):
    state = {name: tensor for name, tensor in original_state(model).items() if "vision_tower" not in name}
    write_full(tmp_path / "original", model, state)
    write_tower(tmp_path / "tower", model)
    report, found = converted(tmp_path, vision_tower=tmp_path / "tower")
    same(model, found)
    num_tensors = len(list(model.model.vision_tower.parameters()))
    assert f"vision_tower: {num_tensors} tensors from {tmp_path / 'tower'} ({num_tensors} float32)" in report


def test_tower_without_head_is_taken_whole(model, tmp_path):
    state = {name: tensor for name, tensor in original_state(model).items() if "vision_tower" not in name}
    write_full(tmp_path / "original", model, state)
    write_tower(tmp_path / "tower", model, published=False)
    same(model, converted(tmp_path, vision_tower=tmp_path / "tower")[1])


def test_so400m_is_meant_where_no_tower_is_named(model, tmp_path):
    write_full(tmp_path / "original", model)
    message = told(tmp_path)
    assert "missing keys: model.vision_tower.encoder.layers.2." in message
    assert "and 354 more" in message  # 24 of 26 layers, 16 tensors each, less the 30 that are listed
    assert "position_embedding.weight [16, 32], not [729, 1152]" in message


def projector_only(root: Path, model, **changes) -> None:
    folder = write_config(root / "original", original_config(model, **changes))
    state = {name: tensor for name, tensor in original_state(model).items() if "mm_projector" in name}
    assert len(state) == 4
    torch.save(state, folder / "mm_projector.bin")


FIRST_STAGE = {"image_aspect_ratio": "square", "mm_patch_merge_type": "flat", "image_grid_pinpoints": None}


def test_projector_goes_between_language_model_and_tower(model, tmp_path):
    projector_only(tmp_path, model, **FIRST_STAGE)
    write_language_model(tmp_path / "base", model)
    write_tower(tmp_path / "tower", model)
    report, found = converted(tmp_path, base=tmp_path / "base", vision_tower=tmp_path / "tower")
    newline = found.model.image_newline.detach()
    assert float(newline.std()) == pytest.approx(1 / 8, rel=0.3)  # 1 / sqrt(64)
    expected = deepcopy(model)
    expected.model.image_newline.data.copy_(newline)
    same(expected, found)
    assert "kind: projector" in report
    assert "image_newline: new, seed 0" in report
    notes = read_preparation(str(tmp_path / "out"), found.config)
    assert (notes.geometry.mode, notes.template) == ("square", "plain")
    assert "intermediate" in (tmp_path / "out" / "README.md").read_text()


def test_projector_replaces_that_of_a_hugging_face_folder(model, tmp_path):
    projector_only(tmp_path, model)
    base = make_tiny(tmp_path / "base", seed=3, tied=False)
    report, found = converted(tmp_path, base=base)
    expected = load_checkpoint(GenerateModel(str(base)), "auto").model.eval()
    expected.model.multi_modal_projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    same(expected, found)
    assert f"projector: 4 tensors from {tmp_path / 'original'}" in report
    assert f"image_newline: 1 tensor from {base}" in report


def write_lora(root: Path, model, targets: str, use_rslora: bool, dtype=torch.float32):
    """Adapter and other trained weights in the original's names. Returns what peft makes of them."""
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=targets, use_rslora=use_rslora)
    wrapped = get_peft_model(deepcopy(model), config)
    adapter = {}
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
            parameter.data.copy_(parameter.to(dtype))
            stem, letter = name.removeprefix("base_model.model.").split(".lora_")
            renamed = original_name(f"{stem}.weight").removesuffix(".weight")
            adapter[f"base_model.model.{renamed}.lora_{letter.replace('.default', '')}"] = parameter.detach().to(dtype)
    others = {}
    for name, parameter in wrapped.named_parameters():
        name = name.removeprefix("base_model.model.")
        if name.startswith((PROJECTOR, "model.image_newline")):
            parameter.data.normal_()
            others[f"base_model.model.{original_name(name)}"] = parameter.detach().clone()
    assert len(others) == 5
    folder = write_config(root / "original", original_config(model))
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "bias": "none", "use_rslora": use_rslora}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.save(adapter, folder / "adapter_model.bin")
    torch.save(others, folder / "non_lora_trainables.bin")
    return wrapped.merge_and_unload()


@pytest.mark.parametrize("use_rslora", [True, False])
@pytest.mark.parametrize("targets", [r".*language_model.*(q|k|v|o|up|down|gate)_proj", r".*(q_proj|v_proj)"])
def test_adapter_is_merged_as_peft_does(model, tmp_path, targets, use_rslora):
    """Matched by their last name, projections of the tower have adapters too."""
    merged = write_lora(tmp_path, model, targets, use_rslora)
    write_full(tmp_path / "base", model)
    write_tower(tmp_path / "tower", model)
    report, found = converted(tmp_path, base=tmp_path / "base", vision_tower=tmp_path / "tower")
    same(merged, found)
    count = 14 if "language_model" in targets else 8  # two layers of seven, or of two and as many in the tower
    assert f"lora: {count} weights merged in fp32, scale {8 if use_rslora else 4}" in report


def test_adapter_of_a_language_model_needs_the_tower(model, tmp_path):
    merged = write_lora(tmp_path, model, r".*language_model.*q_proj", use_rslora=False)
    write_language_model(tmp_path / "base", model)
    assert "set vision_tower=DIR" in told(tmp_path, base=tmp_path / "base")
    write_tower(tmp_path / "tower", model)
    same(merged, converted(tmp_path, base=tmp_path / "base", vision_tower=tmp_path / "tower")[1])


def test_merge_is_computed_in_fp32_and_stored_as_the_base_is(model, tmp_path):
    half = deepcopy(model).bfloat16()
    targets = r".*language_model.*(q|k|v)_proj"
    merged = write_lora(tmp_path, deepcopy(half).float(), targets, use_rslora=False, dtype=torch.bfloat16)
    write_full(tmp_path / "base", half)
    write_tower(tmp_path / "tower", half)
    report, found = converted(tmp_path, base=tmp_path / "base", vision_tower=tmp_path / "tower")
    same_weights(merged.bfloat16(), found)
    assert "projector: 4 tensors" in report
    assert "(4 float32)" in report  # said, because they were cast
    assert "parameters in bfloat16" in report


@pytest.fixture
def whole(model, tmp_path):
    """Changes the tensors, then the settings, of a whole model; says what convert then says."""
    write_tower(tmp_path / "tower", model)

    def message(change=lambda state: None, **changes) -> str:
        state = original_state(model)
        change(state)
        write_full(tmp_path / "original", model, state, **changes)
        return told(tmp_path, vision_tower=tmp_path / "tower")

    return message


def test_every_key_that_does_not_fit_is_listed(whole):
    def change(state):
        state["model.vision_resampler.query"] = torch.zeros(3)
        state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3)
        del state["model.norm.weight"], state["model.mm_projector.2.bias"]
        state["model.mm_projector.0.bias"] = torch.zeros(3)
        state["model.image_newline"] = torch.zeros(64, dtype=torch.int8)

    message = whole(change)
    assert "2 unknown keys: model.layers.7.mlp.up_proj.weight, model.vision_resampler.query" in message
    assert "1 missing key: model.language_model.norm.weight" in message
    assert "1 missing key: model.multi_modal_projector.linear_2.bias" in message
    assert "1 wrongly shaped key: model.mm_projector.0.bias [3], not [64]" in message
    assert "1 key of another dtype: model.image_newline torch.int8" in message
    assert message.startswith("5 errors")


def test_long_lists_are_cut_with_a_count(whole):
    message = whole(lambda state: state.update({f"extra.{i:02d}": torch.zeros(1) for i in range(40)}))
    assert "40 unknown keys: extra.00, extra.01" in message
    assert "extra.29 and 10 more" in message
    assert "extra.30" not in message


def test_partial_tower_is_not_completed_from_elsewhere(whole):
    message = whole(lambda state: state.pop("model.vision_tower.vision_tower.vision_model.post_layernorm.bias"))
    assert "1 missing key: model.vision_tower.post_layernorm.bias" in message


def test_lost_newline_is_not_invented_for_a_whole_model(whole):
    assert "model.image_newline was trained with and is lost" in whole(lambda state: state.pop("model.image_newline"))


@pytest.mark.parametrize("equal", [True, False])
def test_head_of_a_tied_model_must_be_the_embedding(tmp_path, equal):
    model = source_model(tied=True)
    state = original_state(model)
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + (0 if equal else 1e-3)
    write_full(tmp_path / "original", model, state)
    write_tower(tmp_path / "tower", model)
    if equal:
        same(model, converted(tmp_path, vision_tower=tmp_path / "tower")[1])
    else:
        assert "lm_head.weight differs from the embedding" in told(tmp_path, vision_tower=tmp_path / "tower")


def test_rotary_buffers_of_old_checkpoints_are_left_out_aloud(model, tmp_path):
    state = original_state(model)
    state |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    write_full(tmp_path / "original", model, state)
    write_tower(tmp_path / "tower", model)
    report, found = converted(tmp_path, vision_tower=tmp_path / "tower")
    same(model, found)
    assert "2 rotary_emb.inv_freq left out" in report


class Bomb:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["full", "projector", "legacy", "list", "torn"])
def test_pickles_that_hold_more_than_tensors_are_refused(model, tmp_path, kind):
    folder = write_full(tmp_path / "original", model)
    (folder / "model.safetensors").unlink()
    path = folder / ("mm_projector.bin" if kind == "projector" else "pytorch_model.bin")
    content = [torch.zeros(1)] if kind == "list" else {"model.norm.weight": Bomb(tmp_path / "exploded")}
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:100])
    base = {"base": make_tiny(tmp_path / "base")} if kind == "projector" else {}
    message = told(tmp_path, **base)
    assert not (tmp_path / "exploded").exists()
    expected = {"list": "no mapping of names to tensors", "legacy": "cannot be read", "torn": "cannot be read"}
    assert expected.get(kind, "holds more than tensors; it was not unpickled") in message
    assert str(path) in message


def test_shards_that_are_absent_torn_or_double_are_told(model, tmp_path):
    folder = write_config(tmp_path / "original", original_config(model))
    write_tokenizer(folder)
    write_state(folder, original_state(model), num_files=2)
    first, second = sorted(folder.glob("*.safetensors"))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert "repeats" in told(tmp_path)
    second.write_bytes(kept[: len(kept) // 2])
    assert f"{second} is cut off" in told(tmp_path)
    second.write_text(POINTER)
    assert f"{second} is a Git LFS pointer" in told(tmp_path)
    second.unlink()
    assert f"{second} cannot be read" in told(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_aspect_ratio": "pad"}, "mm_patch_merge_type: is spatial_unpad with image_aspect_ratio pad"),
        ({"mm_patch_merge_type": "flat"}, "is flat with image_aspect_ratio anyres_max_9"),
        ({"image_grid_pinpoints": [[28, 30]]}, "image_grid_pinpoints: is [[28, 30]]"),
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints: is None"),
        ({"mm_projector_type": "pooler"}, "mm_projector_type: is 'pooler'"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type: is 'perceiver'"),
        ({"add_faster_video": True}, "add_faster_video: is True"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: is {'type': 'yarn'}"),
        ({"model_type": "llava_llama"}, "holds a llava_llama model"),
        ({"vocab_size": 261}, "embed_tokens.weight [320, 64], not [261, 64]"),
        ({"vocab_size": 260}, "260 embedding rows hold no <image> and <video>"),
    ],
)
def test_what_transformers_cannot_express_is_refused_by_name(whole, changes, expected):
    assert expected in whole(**changes)


def test_settings_that_would_be_guessed_are_asked_for(model, tmp_path):
    folder = write_full(tmp_path / "original", model)
    config = original_config(model)
    del config["rope_theta"], config["num_key_value_heads"]
    write_config(folder, config)
    message = told(tmp_path)
    assert "config.json: rope_theta: is absent" in message
    assert "config.json: num_key_value_heads: is absent" in message


PIXELS = {"mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad"}


def test_grid_pairs_are_transposed_in_their_order():
    """The original's are (width, height); the first of equals wins, so that order counts."""
    listed = [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]
    expected = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))  # rows, columns
    for grid in (listed, str(listed)):
        pixels = read_pixels({**PIXELS, "image_aspect_ratio": "anyres", "image_grid_pinpoints": grid}, 384)
        assert pixels.grid == expected
        assert pixels.max_tiles == 9
    text = read_pixels({**PIXELS, "image_aspect_ratio": "anyres_max_4", "image_grid_pinpoints": "(1x1),...,(2x3)"}, 384)
    assert text.grid == ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2))
    assert text.max_tiles == 4


def test_plain_anyres_is_never_downscaled():
    config = {**PIXELS, "image_aspect_ratio": "anyres", "image_grid_pinpoints": "(1x1),...,(6x6)"}
    pixels = read_pixels(config, 384)
    assert pixels.max_tiles == 36
    assert "anyres became anyres_max_36" in pixels.notes[0]


def test_videos_of_another_layout_are_noted(model, tmp_path):
    write_full(tmp_path / "original", model, mm_newline_position="grid", mm_spatial_pool_stride=4)
    write_tower(tmp_path / "tower", model)
    notes = plan(settings(tmp_path, vision_tower=tmp_path / "tower")).notes
    assert any("mm_newline_position grid" in note for note in notes)
    assert any("mm_spatial_pool_stride 4" in note for note in notes)


def test_tags_get_ids_that_no_token_has(model, tmp_path):
    """As with Qwen2.5, whose tokens stand where Qwen2 has room for the tags."""
    folder = write_full(tmp_path / "original", model)
    write_tokenizer(folder, "<|object_ref_start|>", "<|object_ref_end|>")
    write_tower(tmp_path / "tower", model)
    _, found = converted(tmp_path, vision_tower=tmp_path / "tower")
    assert (found.config.image_token_index, found.config.video_token_index) == (261, 262)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("<image><|object_ref_start|><video>").input_ids == [261, 259, 262]
    expected = deepcopy(model)
    expected.config.image_token_index = 261
    same(expected, found)
    assert checkpoint_geometry(found.config).grid == (
        (1, 1),
        (2, 1),
        (3, 1),
        (1, 2),
        (2, 2),
        (3, 2),
        (1, 3),
        (2, 3),
        (3, 3),
    )


def test_folders_that_do_not_go_together_are_told(model, tmp_path):
    full = write_full(tmp_path / "original", model)
    tiny = make_tiny(tmp_path / "tiny")
    assert "base: would be ignored" in told(tmp_path, base=tiny)
    assert "in Hugging Face form already" in told(tmp_path, original=tiny)
    torch.save({}, full / "mm_projector.bin")
    assert "holds mm_projector.bin and a whole model" in told(tmp_path)
    (full / "model.safetensors").unlink()
    assert "base: is not set" in told(tmp_path)
    assert "vision_tower: would be ignored" in told(tmp_path, base=tiny, vision_tower=tiny)
    (full / "mm_projector.bin").unlink()
    assert "holds no weights" in told(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"bias": "all"}, "bias: is 'all'"), ({"use_dora": True}, "use_dora: is True"), ({"r": 8}, "wrongly shaped")],
)
def test_other_adapters_than_plain_lora_are_refused(model, tmp_path, change, expected):
    write_lora(tmp_path, model, r".*language_model.*q_proj", use_rslora=False)
    path = tmp_path / "original" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    base, tower = write_full(tmp_path / "base", model), write_tower(tmp_path / "tower", model)
    assert expected in told(tmp_path, base=base, vision_tower=tower)


def test_adapter_keys_that_do_not_fit_are_listed(model, tmp_path):
    write_lora(tmp_path, model, r".*language_model.*q_proj", use_rslora=False)
    path = tmp_path / "original" / "adapter_model.bin"
    adapter = torch.load(path)
    adapter.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
    adapter["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)
    torch.save(adapter, path)
    base, tower = write_full(tmp_path / "base", model), write_tower(tmp_path / "tower", model)
    message = told(tmp_path, base=base, vision_tower=tower)
    assert "1 unknown key: base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight" in message
    assert "unpaired key: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight [4, 64]" in message
