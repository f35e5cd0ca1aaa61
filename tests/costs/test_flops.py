"""FLOPs and memory in closed form against what torch counts and keeps on small models, and against known sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from llava_train.config.load import load
from llava_train.config.schema import StageConfig, ZeroConfig
from llava_train.costs.dims import KNOWN_DIMS, join_dims
from llava_train.costs.flops import ATTENTION_BACKWARD, Recomputed, sample_cost
from llava_train.costs.memory import (
    FILLED,
    RESERVED,
    activations,
    num_parameters,
    num_trained,
    recomputed_layers,
    states,
)

TEXT = Qwen2Config(
    hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    vocab_size=100, attn_implementation="eager",
)  # fmt: skip
TOWER = SiglipVisionConfig(
    hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
    vision_use_head=False, attn_implementation="eager",
)  # fmt: skip
DIMS = join_dims(TEXT, TOWER)
SEVEN = KNOWN_DIMS["Qwen/Qwen2-7B-Instruct"]
AS_MATRICES = 3 / (1 + ATTENTION_BACKWARD)  # of attention's FLOPs where its backward keeps the scores


@pytest.fixture
def stage() -> StageConfig:
    """All parts train."""
    return load(["+recipe=ov_stage"]).stages["onevision"]


def frozen(stage: StageConfig, *parts: str) -> StageConfig:
    return replace(stage, learning_rate=replace(stage.learning_rate, **dict.fromkeys(parts, "frozen")))


def counted(run) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        run().sum().backward()
    return counter.get_total_flops()


def test_language_model_and_head_cost_what_torch_counts(stage):
    """Eager attention computes all pairs, of which the causal half is counted here."""
    model, tokens = Qwen2ForCausalLM(TEXT), 20
    flops = counted(lambda: model(torch.zeros(1, tokens, dtype=torch.long)).logits)
    cost = sample_cost(DIMS, stage)
    assert flops == cost.token * tokens + cost.label * tokens + 2 * cost.pair * tokens**2 * AS_MATRICES


def test_a_frozen_language_model_costs_no_gradient_of_its_weights(stage):
    model, tokens = Qwen2ForCausalLM(TEXT).requires_grad_(False), 20
    embeddings = torch.zeros(1, tokens, 48, requires_grad=True)
    flops = counted(lambda: model(inputs_embeds=embeddings).logits)
    cost = sample_cost(DIMS, frozen(stage, "language_model"))
    assert flops == cost.token * tokens + cost.label * tokens + 2 * cost.pair * tokens**2 * AS_MATRICES


def test_tower_and_projector_cost_what_torch_counts(stage):
    tower, tiles = SiglipVisionModel(TOWER), 3
    projector = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.GELU(), torch.nn.Linear(48, 48))
    pixels = torch.zeros(tiles, 3, 32, 32)

    def run() -> torch.Tensor:
        return projector(tower.encoder(tower.embeddings(pixels)).last_hidden_state)

    attention = 4 * 2 * 32 * 16**2 * tiles  # all pairs of 16 patches in 2 layers, forward
    saved = attention * (1 + ATTENTION_BACKWARD - 3)
    assert counted(run) == sample_cost(DIMS, stage).tile * tiles - saved
    tower.requires_grad_(False)
    alone = sample_cost(DIMS, frozen(stage, "vision_tower", "language_model"))
    assert counted(run) == alone.tile * tiles


def test_recomputing_costs_one_forward_of_the_layers_that_need_gradients_but_their_last_product(stage):
    every = recomputed_layers(SEVEN, stage, 8, 0)
    once, twice = sample_cost(SEVEN, stage), sample_cost(SEVEN, stage, every)
    assert twice.token == once.token * 4 / 3 - 2 * 28 * 3584 * 18944
    assert twice.pair / once.pair == 4.5 / 3.5
    assert twice.label == once.label
    assert sample_cost(SEVEN, stage, Recomputed(0, 14)).token == (once.token + twice.token) / 2
    fixed = frozen(stage, "vision_tower")
    assert recomputed_layers(SEVEN, fixed, 8, 0) == Recomputed(0, 28)


def test_costs_of_documents_add_up_and_grow_with_their_square(stage):
    cost = sample_cost(SEVEN, stage)
    one, two, long = cost(np.array([100, 200, 10**5]), np.zeros(3, int), np.zeros(3, int))
    assert two == pytest.approx(2 * one + cost.pair * (200**2 - 2 * 100**2))
    assert long > 1000 * one


@pytest.mark.parametrize(("name", "total"), [("0.5B", 893_618_208), ("7B", 8_030_348_832), ("72B", 73_180_522_016)])
def test_parameters_of_the_released_sizes(name, total, stage):
    """Totals as counted on meta tensors of the released configurations."""
    dims = KNOWN_DIMS[f"Qwen/Qwen2-{name}-Instruct"]
    assert sum(num_parameters(dims).values()) == total == num_trained(dims, stage)
    assert num_parameters(dims)["vision_tower"] == 397_747_744


def test_parameters_of_a_small_model():
    model = Qwen2ForCausalLM(TEXT)
    assert num_parameters(DIMS)["language_model"] == sum(p.numel() for p in model.parameters()) + 48  # and the newline
    assert num_parameters(DIMS)["vision_tower"] == sum(p.numel() for p in SiglipVisionModel(TOWER).parameters())


@pytest.mark.parametrize(
    ("level", "bytes_a_weight"), [(1, 2 + 2 + 4 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8), (0, 2 + 2 + 4 + 12 / 8)]
)
def test_states_by_level(level, bytes_a_weight, stage):
    held = states(SEVEN, stage, ZeroConfig(level, False, False), 8)
    assert held.gpu - held.gathered == pytest.approx(8_030_348_832 * bytes_a_weight)
    assert held.host == 0


def test_offload_moves_states_to_the_host(stage):
    plain = states(SEVEN, stage, ZeroConfig(3, False, False), 8)
    both = states(SEVEN, stage, ZeroConfig(3, True, True), 8)
    assert both.gpu == plain.gathered
    assert both.host == plain.gpu - plain.gathered + plain.gradients, "gradients twice"
    alone = states(SEVEN, stage, ZeroConfig(2, True, False), 8)
    largest = 2 * 3584 * 152064  # a gradient on its way, on both sides
    assert alone.gpu - alone.gathered == 8_030_348_832 * (2 + 4 / 8), "gradients stay"
    assert alone.host == 8_030_348_832 * 18 / 8 + largest


def test_frozen_parts_have_weights_alone(stage):
    part = frozen(stage, "vision_tower", "language_model")
    held = states(SEVEN, part, ZeroConfig(1, False, False), 1)
    assert held.gpu == 8_030_348_832 * 2 + 16_980_992 * 18


def test_checkpointing_saves_memory_and_supervised_rows_need_some(stage):
    pack = (np.array([32768]), np.array([76]), np.array([0]))
    every = recomputed_layers(SEVEN, stage, 8, 0)
    on, off = (activations(SEVEN, stage, again, *pack)[0] for again in (every, Recomputed()))
    assert on < 0.2 * off

    def at_loss(supervised: int) -> float:
        return activations(SEVEN, stage, Recomputed(), *pack[:2], np.array([supervised]))[0]

    assert at_loss(8192) - at_loss(4096) == 4096 * 3584 * 4, "states and their gradient; no more logits at a time"
    assert at_loss(4096) - at_loss(3700) == 396 * (3584 * 4 + 152064 * 10), "beside the gradient of the chunk before"


def test_auto_recomputes_as_few_layers_as_the_memory_allows(stage):
    auto = replace(stage, gradient_checkpointing="auto")
    pack = [np.array([n]) for n in (stage.pack.max_tokens, stage.pack.max_tiles, stage.pack.max_tokens)]

    def held(again: Recomputed) -> float:
        return states(SEVEN, auto, auto.zero, 64).gpu + RESERVED + float(activations(SEVEN, auto, again, *pack)[0])

    found = [recomputed_layers(SEVEN, auto, 64, memory * 1e9) for memory in (0, 80, 120, 160, 200, 2000)]
    assert found[0] == recomputed_layers(SEVEN, stage, 64, 0) == Recomputed(26, 28)
    assert found[-1] == Recomputed()
    costs = [sample_cost(SEVEN, auto, again) for again in found]
    flops = [cost.token * stage.pack.max_tokens + cost.tile * stage.pack.max_tiles for cost in costs]
    assert flops == sorted(flops, reverse=True)
    assert len(set(found)) >= 5
    for again, memory in zip(found[1:], (80, 120, 160, 200, 2000), strict=True):
        assert held(again) <= FILLED * memory * 1e9
        for part, num in vars(again).items():
            assert not num or held(replace(again, **{part: num - 1})) > FILLED * memory * 1e9
