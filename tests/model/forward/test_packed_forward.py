"""The packed forward: what every batch must touch, what a wrong one is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from llava_train.batch.packed import PackedBatch
from llava_train.config.schema import LearningRates
from llava_train.costs.dims import num_tower_layers
from llava_train.costs.flops import Recomputed
from llava_train.family.towers import siglip_features
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.prepare.trained_parts import set_trainable
from llava_train.train.recomputing import set_layers

ALL = LearningRates(1e-3, 1e-3, 1e-3)
IMAGE = 259


@pytest.fixture
def forward(loaded):
    set_trainable(loaded.model, ALL)
    return PackedForward(loaded.model, checkpoint_geometry(loaded.model.config))


def batch(*documents) -> PackedBatch:
    """Documents [layout or None]: two tokens, the visual, three supervised tokens."""
    ids, labels, positions, visual, bounds = [], [], [], [], [0]
    layouts = tuple(layout for layout in documents if layout)
    for layout in documents:
        num = layout.num_tokens if layout else 0
        visual += range(len(ids) + 2, len(ids) + 2 + num)
        ids += [65, 66, *[IMAGE] * num, 67, 68, 69]
        labels += [-100] * (2 + num) + [67, 68, 69]
        positions += range(num + 5)
        bounds.append(len(ids))
    tiles = torch.randint(0, 256, (sum(layout.num_tiles for layout in layouts), 3, 28, 28), dtype=torch.uint8)
    return PackedBatch(
        torch.tensor(ids),
        torch.tensor(labels),
        (torch.tensor(labels) != -100).nonzero().squeeze(1),
        torch.tensor(positions),
        torch.tensor(bounds, dtype=torch.int32),
        max(stop - start for start, stop in pairwise(bounds)),
        tiles,
        torch.tensor(visual, dtype=torch.int64),
        layouts,
        tuple(f"source/{i}" for i in range(len(documents))),
    )


def gradients(forward, one):
    forward.zero_grad(set_to_none=True)
    forward(one).backward()
    return {name: parameter.grad for name, parameter in forward.named_parameters() if parameter.requires_grad}


def test_text_alone_gives_zero_gradients_to_the_visual_parts(forward):
    found = gradients(forward, batch(None))
    visual = [name for name in found if "vision_tower" in name or "projector" in name or "newline" in name]
    assert len(visual) == 40
    assert all(found[name] is not None and not found[name].any() for name in visual)
    assert found["hf_model.model.language_model.embed_tokens.weight"].any()


def test_every_kind_of_visual_touches_every_trained_parameter(forward):
    geometry = forward.geometry
    square = replace(geometry, mode="square").image(30, 40)
    for layout in (square, geometry.image(30, 40), geometry.padded(30, 40), geometry.video(3, 30, 40)):
        found = gradients(forward, batch(layout))
        assert all(gradient is not None for gradient in found.values()), layout
        reaches_newline = bool(found["hf_model.model.image_newline"].any())
        assert reaches_newline == (layout.kind != "square"), layout


def test_one_tower_call_for_all_tiles_and_frames(forward):
    calls = []
    forward.hf_model.model.vision_tower.encoder.layers[0].register_forward_hook(lambda *a: calls.append(len(a[1][0])))
    geometry = forward.geometry
    one = batch(geometry.image(30, 40), None, geometry.video(3, 30, 40), geometry.padded(9, 9))
    forward(one)
    assert calls == [len(one.pixel_values)]
    forward(batch(None))
    assert calls[1:] == [1]


@pytest.mark.parametrize("recomputed", [Recomputed(2, 2), Recomputed(1, 1), Recomputed(0, 1), Recomputed()])
def test_recomputed_layers_run_twice_and_change_no_gradient(forward, recomputed):
    torch.manual_seed(0)
    one = batch(forward.geometry.image(30, 40), None)
    forward.train()
    plain = gradients(forward, one)
    set_layers(forward.hf_model, recomputed)
    runs = [0, 0, 0, 0]
    model = forward.hf_model.model
    for i, layer in enumerate([*model.vision_tower.encoder.layers, *model.language_model.layers]):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    torch.testing.assert_close(gradients(forward, one), plain)
    assert [sum(runs[:2]) - 2, sum(runs[2:]) - 2] == [recomputed.tower, recomputed.language]
    assert runs == sorted(runs[:2], reverse=True) + sorted(runs[2:], reverse=True), "the first layers"


def tower_features(forward, pixels: torch.Tensor) -> torch.Tensor:
    return siglip_features(forward.hf_model.model.vision_tower, pixels, num_tower_layers(forward.hf_model.config))


@pytest.mark.parametrize(
    ("rates", "has_graph"),
    [(LearningRates("frozen", 1e-3, "frozen"), False), (LearningRates(1e-3, "frozen", "frozen"), True)],
)
def test_frozen_tower_keeps_no_graph(forward, rates, has_graph):
    set_trainable(forward.hf_model, rates)
    one = batch(forward.geometry.image(30, 40))
    assert tower_features(forward, one.pixel_values).requires_grad == has_graph
    assert all(gradient.any() for gradient in gradients(forward, one).values())


def test_chosen_hidden_state_equals_that_of_transformers(forward):
    pixels = batch(forward.geometry.image(30, 40)).pixel_values
    with torch.no_grad():
        states = forward.hf_model.model.vision_tower(pixels / 127.5 - 1, output_hidden_states=True).hidden_states
        for layer in (-1, -2, 0, 1, 2):
            forward.hf_model.config.vision_feature_layer = layer
            torch.testing.assert_close(tower_features(forward, pixels), states[layer])


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_micro_batch_never_waits_for_the_gpu(loaded, compiled):
    device = torch.device("cuda")
    model = loaded.model.to(device, torch.bfloat16).train()
    set_trainable(model, ALL)
    set_layers(model, Recomputed(1, 1), compiled)
    geometry = checkpoint_geometry(model.config)
    ours = PackedForward(model, geometry, device=device, compiled=compiled)
    one = batch(geometry.image(30, 40), None, geometry.video(3, 30, 40))
    ours(one).backward()  # what is made at first use may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours(one).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_supervised_is_a_zero_with_gradients(forward):
    one = batch(None)
    found = gradients(forward, replace(one, supervised=one.supervised[:0]))
    assert all(gradient is not None and not gradient.any() for gradient in found.values())


def test_misplaced_placeholders_name_the_sample(forward):
    good = batch(None, forward.geometry.padded(9, 9))
    forward(good)
    with pytest.raises(ValueError, match="source/0: its placeholders do not fit"):
        forward(replace(good, visual_positions=good.visual_positions - 3))
    gap = good.visual_positions.clone()
    gap[-1] += 1
    with pytest.raises(ValueError, match="source/1: its placeholders do not fit"):
        forward(replace(good, visual_positions=gap))
    with pytest.raises(ValueError, match="16 placeholders for 17 visual tokens in source/0, source/1"):
        forward(replace(good, visual_positions=good.visual_positions[1:]))


def test_tiles_that_the_layouts_do_not_lay_out_are_refused(forward):
    good = batch(forward.geometry.video(3, 9, 9))
    with pytest.raises(ValueError, match="laid out for 3 tiles, the batch holds 2"):
        forward(replace(good, pixel_values=good.pixel_values[1:]))
