"""Parts, learning rates, parameter groups and counts."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

from llava_train.config.schema import LearningRates
from llava_train.model.prepare.trained_parts import PARTS, parameter_groups, part_of, part_table, set_trainable

ALL = LearningRates(2e-6, 1e-5, 2e-5)
PROJECTOR = LearningRates("frozen", 1e-3, "frozen")
SOURCES = dict.fromkeys(PARTS, "x")


@pytest.fixture(scope="module")
def published():
    """The 0.5B model without storage."""
    text = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(text_config=text))


def num_trainable(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_published_counts(published):
    """Counted from the shapes of the released 0.5B: 893,618,208 with the newline, of which post_layernorm is unused."""
    set_trainable(published, PROJECTOR)
    assert num_trainable(published) == 1_836_800
    set_trainable(published, ALL)
    assert num_trainable(published) == 893_618_208 - 2 * 1152
    rows = {row.part: (row.num_parameters, row.num_trainable) for row in part_table(published, SOURCES)}
    assert rows == {
        "vision_tower": (397_747_744, 397_745_440),
        "projector": (1_836_800, 1_836_800),
        "language_model": (494_032_768 + 896, 494_032_768 + 896),
    }


def test_newline_follows_the_language_model(loaded):
    assert part_of("model.image_newline") == "language_model"
    set_trainable(loaded.model, PROJECTOR)
    assert not loaded.model.model.image_newline.requires_grad


def test_layers_above_the_chosen_hidden_state_are_frozen(loaded):
    loaded.model.config.vision_feature_layer = -2
    set_trainable(loaded.model, ALL)
    layers = loaded.model.model.vision_tower.encoder.layers
    assert all(parameter.requires_grad for parameter in layers[0].parameters())
    assert not any(parameter.requires_grad for parameter in layers[1].parameters())


def test_unknown_parameter_belongs_to_no_part():
    with pytest.raises(ValueError, match="audio_tower"):
        part_of("model.audio_tower.weight")


@pytest.mark.parametrize(("decay", "names"), [(0.0, PARTS), (0.1, [n for p in PARTS for n in (p, f"{p}_no_decay")])])
def test_groups_hold_each_trainable_parameter_once(loaded, decay, names):
    set_trainable(loaded.model, ALL)
    groups = parameter_groups(loaded.model, ALL, decay)
    assert [group["name"] for group in groups] == list(names)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in loaded.model.parameters() if p.requires_grad)
    for group in groups:
        assert group["lr"] == getattr(ALL, group["name"].removesuffix("_no_decay"))
        assert group["weight_decay"] == (0.0 if group["name"].endswith("_no_decay") else decay)
        assert all(parameter.ndim == 1 for parameter in group["params"]) or not group["name"].endswith("_no_decay")


def test_part_without_trainable_parameters_is_refused(loaded):
    set_trainable(loaded.model, PROJECTOR)
    with pytest.raises(ValueError, match="nothing to train in vision_tower"):
        parameter_groups(loaded.model, ALL, 0.0)
