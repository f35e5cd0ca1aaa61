"""What `plan` counts of FLOPs and memory, held to the model itself: at full size, and of random shapes and packs.

Run by `test_fake_gpu.py`; alone: `python tests/fakegpu/process.py checks_plan.py`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from fake_gpu import FakeGpu
from meter import Meter
from micro_batches import make, pack, run, sample
from torch import nn
from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

from llava_train.batch.packed import PackedBatch
from llava_train.config.load import load
from llava_train.config.schema import LoraConfig, StageConfig, ZeroConfig
from llava_train.costs.dims import KNOWN_DIMS, ModelDims, read_dims
from llava_train.costs.flops import Recomputed, sample_cost
from llava_train.costs.memory import activations
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.model.hf_folder.preparation import checkpoint_geometry

STAGE = replace(load(["+recipe=ov_stage"]).stages["onevision"], zero=ZeroConfig(2, False, False))  # all parts train
ADAPTER = LoraConfig(4, 8)
PARTS = {  # what trains; a sample of 20 shapes sees each several times
    "all": {},
    "projector": {"vision_tower": "frozen", "language_model": "frozen"},
    "without the tower": {"vision_tower": "frozen"},
    "tower": {"language_model": "frozen"},
}
LORA = {
    "lora": {"language_model": ADAPTER},
    "lora with dropout": {"language_model": replace(ADAPTER, dropout=0.05)},
    "lora everywhere": dict.fromkeys(PARTS["projector"] | {"projector": ""}, ADAPTER),
}


def config_of(dims: ModelDims, heads: int = 16) -> LlavaOnevisionConfig:
    """heads: of the tower."""
    text = Qwen2Config(
        hidden_size=dims.hidden, intermediate_size=dims.intermediate, num_hidden_layers=dims.layers,
        num_attention_heads=dims.heads, num_key_value_heads=dims.kv_heads, vocab_size=dims.vocab,
        max_position_embeddings=2**17, tie_word_embeddings=dims.tied,
    )  # fmt: skip
    tower = SiglipVisionConfig(
        hidden_size=dims.tower_hidden, intermediate_size=dims.tower_intermediate, num_attention_heads=heads,
        num_hidden_layers=dims.tower_layers, image_size=dims.tile_size, patch_size=dims.patch_size,
        vision_use_head=False,
    )  # fmt: skip
    sides = [dims.tile_size * n for n in range(1, 7)]
    return LlavaOnevisionConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=1,
        video_token_index=2,
        image_grid_pinpoints=[[height, width] for height in sides for width in sides],
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=dims.tied,
    )


def mixture(rng: np.random.Generator, geometry: OneVisionGeometry, tokens: int) -> PackedBatch:
    """Text, images up to 6x6 tiles, several images and videos, at random, until there are `tokens`."""
    samples, length = [], 0
    while length < tokens:
        height, width = rng.integers(100, 2000, 2).tolist()
        kind = rng.integers(4)
        layouts = [
            [],
            [geometry.image(height, width)],
            [geometry.padded(height, width)] * int(rng.integers(2, 6)),
            [geometry.video(int(rng.integers(1, 33)), height, width)],
        ][kind]
        samples.append(sample(layouts, *rng.integers(3, 400 if layouts else 3000, 2).tolist()))
        length += len(samples[-1].input_ids)
    return pack(samples, geometry)


def compare(
    gpu: FakeGpu, config: LlavaOnevisionConfig, stage: StageConfig, again: Recomputed, one: PackedBatch
) -> None:
    """FLOPs within 1 %, bytes at the fullest within 5 %."""
    forward = make(gpu, config, stage.learning_rate, stage.lora, again)
    for parameter in forward.parameters():  # a gradient goes into DeepSpeed's buffers when it is there
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda done: setattr(done, "grad", None))
    lengths = [stop - start for start, stop in pairwise(one.cu_seqlens.tolist())]
    meter = Meter(forward, lengths)
    run(gpu, forward, one, meter)
    assert meter.held < 1e3, "something outlives the micro-batch"
    dims = read_dims(config)
    tiles = max(1, len(one.pixel_values))  # without any the forward runs one of zeros
    sizes = np.array([[len(one.input_ids)], [tiles], [one.num_supervised]])
    flops = sample_cost(dims, stage, again)(np.array(lengths), np.zeros(len(lengths)), np.zeros(len(lengths))).sum()
    flops += sample_cost(dims, stage, again)(np.array([0]), *sizes[1:])[0]
    held = activations(dims, stage, again, *sizes)[0]
    assert flops == pytest.approx(meter.flops, rel=0.01)
    assert held == pytest.approx(meter.peak, rel=0.05)


@pytest.mark.parametrize(("size", "recomputed"), [("0.5B", False), ("7B", False), ("7B", True), ("72B", True)])
def test_at_full_size(gpu, size, recomputed):
    dims = KNOWN_DIMS[f"Qwen/Qwen2-{size}-Instruct"]
    config = config_of(dims)
    again = Recomputed(dims.tower_layers, dims.layers) if recomputed else Recomputed()
    compare(gpu, config, STAGE, again, mixture(np.random.default_rng(1), checkpoint_geometry(config), 30_000))


@pytest.mark.parametrize("seed", range(20))
def test_of_random_shapes_and_packs(gpu, seed, monkeypatch):
    rng = np.random.default_rng(seed)

    def draw(*choices: int) -> int:
        return int(rng.choice(choices))

    kv_heads, head_dim, tower_heads = draw(1, 2, 4), draw(64, 128), draw(4, 8, 16)
    heads = kv_heads * draw(1, 2, 7)
    hidden, tower = heads * head_dim, tower_heads * draw(64, 72)
    tile = draw(224, 336, 384)
    dims = ModelDims(
        tower_hidden=tower, tower_intermediate=tower * draw(2, 4), tower_layers=draw(2, 3, 5), tile_size=tile,
        patch_size=14, hidden=hidden, intermediate=hidden * draw(2, 3, 5), layers=draw(2, 3, 6), heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, vocab=draw(32_000, 128_256, 151_936), tied=bool(draw(0, 1)),
    )  # fmt: skip
    kind = str(rng.choice([*PARTS, *LORA]))
    stage = replace(STAGE, learning_rate=replace(STAGE.learning_rate, **PARTS.get(kind, {})), lora=LORA.get(kind, {}))
    if seed % 2:
        stage = replace(stage, zero=ZeroConfig(3, False, False))  # DeepSpeed's linear layers take the place of torch's
        monkeypatch.setattr(nn.functional, "linear", zero3_linear_wrap)
    trains_tower = stage.learning_rate.vision_tower != "frozen"
    again = Recomputed(int(rng.integers(dims.tower_layers + 1)) * trains_tower, int(rng.integers(dims.layers + 1)))
    config = config_of(dims, tower_heads)
    compare(gpu, config, stage, again, mixture(rng, checkpoint_geometry(config), draw(2_000, 8_000, 30_000)))
