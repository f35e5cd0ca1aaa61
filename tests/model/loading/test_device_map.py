"""A model spread over devices by accelerate answers as it does in one piece."""

from __future__ import annotations

import pytest
import torch
from accelerate import infer_auto_device_map
from onevision_reference import KINDS, Ours

from llava_train.config.schema import GenerateModel
from llava_train.model.forward.generate import generate
from llava_train.model.forward.packed_forward import PackedForward, device_of
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.loading.load_model import load_checkpoint
from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny, tiny_config, tiny_model

NEW_TOKENS = 8
PARTS = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
LAYERS = {  # between the parts and within them
    "model.image_newline": "cpu",
    "model.vision_tower.embeddings": "cpu",
    "model.vision_tower.encoder.layers.0": "disk",
    "model.vision_tower.encoder.layers.1": "cpu",
    "model.vision_tower.post_layernorm": "cpu",
    "model.multi_modal_projector": "disk",
    "model.language_model.embed_tokens": "disk",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.norm": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("map") / "tiny", tied=False)


def forward_and_batch(folder, **kwargs):
    loaded = load_checkpoint(GenerateModel(str(folder)), torch.float32, **kwargs)
    config = loaded.model.config
    geometry = checkpoint_geometry(config)
    ours = Ours(loaded.tokenizer, geometry, config.image_token_index, config.video_token_index)
    return PackedForward(loaded.model, geometry), ours.pack(KINDS, prompt=True)


def answer(forward, batch):
    return generate(forward, batch, NEW_TOKENS, [], 1)


def whole(*, on_disk):
    return {"model.image_newline": "cpu", **{part: "disk" if part in on_disk else "cpu" for part in PARTS}}


MAPS = {
    "one device": "auto",
    "tower": whole(on_disk=PARTS[:1]),
    "language model": whole(on_disk=PARTS[2:]),
    "everything": whole(on_disk=PARTS),
    "layers": LAYERS,
}


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_answers_are_those_of_the_model_in_one_piece(folder, tmp_path, monkeypatch, device_map):
    monkeypatch.chdir(tmp_path)
    expected = answer(*forward_and_batch(folder))
    forward, batch = forward_and_batch(folder, device_map=device_map)
    weights = {parameter.device.type for parameter in forward.hf_model.parameters()}
    assert ("meta" in weights) == (device_map != "auto")
    assert answer(forward, batch) == expected


def test_auto_places_the_newline_first():
    """A bare parameter, which no hook of accelerate brings along: it must not be offloaded."""
    with torch.device("meta"):
        model = tiny_model(tiny_config(byte_tokenizer()))
    placed = infer_auto_device_map(model, {"cpu": "250KB"}, no_split_module_classes=model._no_split_modules)
    assert set(placed.values()) == {"cpu", "disk"}
    assert placed["model.image_newline"] == "cpu"


def test_weights_that_are_kept_elsewhere_compute_where_their_hooks_say(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forward, _ = forward_and_batch(folder, device_map=whole(on_disk=PARTS))
    tower = forward.hf_model.model.vision_tower
    assert next(tower.parameters()).device.type == "meta"
    assert device_of(tower.embeddings) == device_of(tower.encoder.layers[1]) == torch.device("cpu")
