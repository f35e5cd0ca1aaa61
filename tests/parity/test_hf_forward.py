"""Ids, pixels, visual features, logits and loss equal those of transformers on the same weights, in fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onevision_reference import KINDS, MIXED, SEVERAL, SINGLE, TEXT, VIDEO, Case

from llava_train.text.chat_template import chat_template

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
HEIGHTS = (28, 28, 56, 84, 42, 10, 1, 1, 90, 17, 91, 40, 300, 20, 64, 48, 200, 133, 77, 51, 251, 37, 99)
WIDTHS = (28, 56, 28, 84, 42, 10, 1, 90, 1, 91, 17, 41, 20, 300, 48, 64, 200, 77, 133, 99, 90, 911, 100)
SIZES = list(zip(HEIGHTS, WIDTHS, strict=True))


def compare_logits(pair, cases):
    """Each document's logits, ours from one pack, theirs from a call of its own."""
    batch = pair.ours.pack(cases)
    with torch.no_grad():
        packed = pair.forward.hf_model.lm_head(pair.forward.hidden_states(batch))
    for case, ids, logits in zip(cases, split(batch, batch.input_ids), split(batch, packed), strict=True):
        with torch.no_grad():
            expected = pair.theirs.model(input_ids=ids[None], **pair.theirs.media((case,))).logits[0]
        torch.testing.assert_close(logits, expected, **TOLERANCE, msg=lambda text, case=case: f"{case}: {text}")
        assert expected.std() > 0.1  # not a comparison of nearly nothing


def split(batch, tensor):
    return tensor.split(batch.cu_seqlens.diff().tolist())


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_input_ids_equal(pair, case):
    encoded, _ = pair.ours.encode(case)
    assert encoded.input_ids.tolist() == pair.theirs.input_ids(case, chat_template("qwen", "front"))


@pytest.mark.parametrize("case", [SINGLE, SEVERAL], ids=lambda case: case.name)
def test_pixels_equal(pair, case):
    _, tiles = pair.ours.encode(case)
    ours = (torch.from_numpy(tiles).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(ours, pair.theirs.pixels(case), rtol=0, atol=1e-6)


def test_anyres_pixels_tokens_features_and_logits_equal_at_many_sizes(pair):
    assert len(SIZES) >= 20
    cases = tuple(Case(f"{size}", (size,), (), "<image>\nWhat?") for size in SIZES)
    grids = {pair.ours.geometry.image(*size).grid for size in SIZES}
    scaled = [s for s in SIZES if is_scaled(pair.ours.geometry, s)]
    assert len(grids) >= 5
    assert scaled  # some canvases are downscaled, some are not
    assert len(scaled) < len(SIZES)
    for case in cases:
        encoded, tiles = pair.ours.encode(case)
        assert len(encoded.visual_positions) == pair.theirs.num_tokens(case)[0][0]
        ours = (torch.from_numpy(tiles).float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(ours, pair.theirs.pixels(case), rtol=0, atol=1e-6)
    batch = pair.ours.pack(cases)
    with torch.no_grad():
        features = pair.forward.embed(batch)[batch.visual_positions]
        expected = pair.theirs.model.model.get_image_features(**pair.theirs.media(cases)).pooler_output
    torch.testing.assert_close(features, torch.cat(expected), **TOLERANCE)
    compare_logits(pair, cases)


def is_scaled(geometry, size):
    layout = geometry.image(*size)
    crop = geometry.feature_crop(layout)
    return crop.size != (crop.rows.stop - crop.rows.start, crop.columns.stop - crop.columns.start)


@pytest.mark.parametrize("case", [SEVERAL, VIDEO], ids=lambda case: case.name)
def test_features_equal(pair, case):
    batch, media = pair.ours.pack((case,)), pair.theirs.media((case,))
    with torch.no_grad():
        ours = pair.forward.embed(batch)[batch.visual_positions]
        if case.frames:
            expected = pair.theirs.model.model.get_video_features(**media).pooler_output
        else:
            expected = pair.theirs.model.model.get_image_features(**media).pooler_output
    torch.testing.assert_close(ours, torch.cat(list(expected)), **TOLERANCE)


def test_logits_of_a_pack_equal_each_sample_alone(pair):
    equal_frames = Case("mixed", MIXED.images, (3, 3), MIXED.text, MIXED.answer)  # one call of theirs takes one length
    compare_logits(pair, (TEXT, SINGLE, SEVERAL, VIDEO, equal_frames, TEXT))


def test_loss_equals_in_a_padded_batch(pair):
    cases = (TEXT, SINGLE, SEVERAL, VIDEO)
    batch = pair.ours.pack(cases)
    loss = pair.forward(batch)
    ids, labels = (split(batch, tensor) for tensor in (batch.input_ids, batch.labels))
    pad = torch.nn.utils.rnn.pad_sequence
    theirs = pair.theirs.model(
        input_ids=pad(ids, batch_first=True, padding_value=0),
        attention_mask=pad([torch.ones_like(row) for row in ids], batch_first=True),
        labels=pad(labels, batch_first=True, padding_value=-100),
        **pair.theirs.media(cases),
    ).loss
    torch.testing.assert_close(loss / batch.num_supervised, theirs, **TOLERANCE)
    assert loss.dtype == torch.float32


def test_packed_equals_apart_in_loss_and_every_gradient(pair):
    cases = (TEXT, SINGLE, SEVERAL, VIDEO, MIXED, TEXT)
    together = gradients(pair, [pair.ours.pack(cases)])
    apart = gradients(pair, [pair.ours.pack((case,)) for case in cases])
    assert together.keys() == apart.keys()
    largest = max(value.abs().max() for name, value in apart.items() if name != "loss")
    for name, value in apart.items():
        scale = value.abs().max()
        if "vision_tower" in name and name.endswith("k_proj.bias"):
            scale = largest  # zero but for rounding: a softmax does not see what all keys share
        assert scale > 0, name
        np.testing.assert_allclose(together[name] / scale, value / scale, atol=1e-5, err_msg=name)


def gradients(pair, batches):
    """Summed loss and gradients of every parameter that the forward reads."""
    pair.forward.zero_grad(set_to_none=True)
    losses = [pair.forward(batch) for batch in batches]
    sum(losses).backward()
    named = pair.forward.hf_model.named_parameters()
    found = {name: p.grad.clone() for name, p in named if "post_layernorm" not in name}
    pair.forward.zero_grad(set_to_none=True)
    return {"loss": sum(losses).detach(), **found}
