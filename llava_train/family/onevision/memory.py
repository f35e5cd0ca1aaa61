"""What a rank needs of memory, in closed form: the model's states at a ZeRO level, and the activations of a pack.

Enters: dimensions, a stage's settings, the number of ranks, tokens and tiles of packs. Leaves: bytes on the GPU and on
the host. States as in Rajbhandari et al. 2020 (arXiv 1910.02054, section 3) and in `train/engine.py`, which accumulates
gradients in fp32; activations as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4), tensor by tensor for these
layers, with attention that keeps no scores. An estimate: it has been compared with no GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llava_train.config.schema import StageConfig, ZeroConfig
from llava_train.family.onevision.cost import ModelDims, Recomputed, sample_cost

GRADIENT = 4  # bytes of a trained weight's gradient, which is accumulated in fp32
MOMENTS = 8  # bytes of AdamW's two moments of a trained weight, fp32
MASTER = 4  # bytes of the fp32 copy of a weight that trains in bf16
WEIGHT = {"none": 0.0, "8bit": 1.0, "4bit": 0.53}  # bytes of a quantised weight, with its scales
LIVE = 1_000_000_000  # weights that ZeRO 3 keeps gathered at the most, as train/engine.py sets it
BUCKET = 200_000_000  # gradients on their way between ranks at ZeRO 2 and 3, likewise; there are two
RESERVED = 2e9  # bytes of the CUDA context, of the libraries and of what the allocator cannot use; a guess
ROWS = 2048  # of logits at a time, as in model/loss.py
FILLED = 0.92  # share of a memory that gradient_checkpointing=auto plans to fill; a guess


def num_parameters(dims: ModelDims) -> dict[str, int]:
    """By part; of the language model with biases on queries, keys and values, as Qwen2 has them."""
    d, m, h = dims.tower_hidden, dims.tower_intermediate, dims.hidden
    queries, keys = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    tower_layer = dims.tower_layer + 4 * d + m + d + 4 * d  # biases of attention and MLP, two norms
    embeddings = 3 * dims.patch_size**2 * d + d + dims.patches * d
    layer = dims.layer + queries + 2 * keys + 2 * h
    vocabulary = dims.head * (1 if dims.tied else 2)
    return {
        "vision_tower": embeddings + dims.tower_layers * tower_layer + 2 * d,
        "projector": dims.projector + 2 * h,
        "language_model": vocabulary + dims.layers * layer + h + h,  # the last norm, and the newline
    }


def num_trained(dims: ModelDims, stage: StageConfig) -> int:
    """Weights with a gradient; adapters as if they were in every linear layer of their part."""
    wholes = num_parameters(dims)
    return sum(
        _num_adapter(dims, part, stage.lora[part].rank) if part in stage.lora else wholes[part]
        for part, rate in vars(stage.learning_rate).items()
        if rate != "frozen"
    )


def _num_adapter(dims: ModelDims, part: str, rank: int) -> int:
    d, m, h = dims.tower_hidden, dims.tower_intermediate, dims.hidden
    queries, keys = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    sides = {
        "vision_tower": dims.tower_layers * (4 * 2 * d + 2 * (d + m)),
        "projector": d + 3 * h,
        "language_model": dims.layers * (2 * (h + queries) + 2 * (h + keys) + 3 * (h + dims.intermediate)),
    }
    return rank * sides[part]


@dataclass(frozen=True)
class States:
    """Bytes of one rank on its GPU and in the host's memory."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    host: float

    @property
    def gpu(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered


def states(dims: ModelDims, stage: StageConfig, zero: ZeroConfig, world_size: int) -> States:
    """The model's states on one of `world_size` ranks, as `train/engine.py` runs DeepSpeed."""
    wholes, trained = num_parameters(dims), num_trained(dims, stage)
    bf16 = stage.precision == "bf16"
    level = max(1, zero.level) if bf16 else zero.level  # bf16 without ZeRO runs as level 1
    element = 2 if bf16 else 4
    quantised = dims.layers * dims.layer if stage.load_in != "none" else 0
    num_weights = sum(wholes.values())
    weights = (num_weights - quantised) * element + quantised * WEIGHT[stage.load_in]
    weights /= world_size if level == 3 else 1
    gradients = trained * GRADIENT / (world_size if level >= 2 else 1)
    optimizer = trained * (MOMENTS + (MASTER if bf16 else 0)) / (world_size if level >= 1 else 1)
    gathered = (2 * min(BUCKET, trained) * element if level >= 2 else 0) + (
        min(LIVE, num_weights) * element if level == 3 else 0
    )
    host = 0.0
    if zero.offload_optimizer:
        host, gradients, optimizer = host + optimizer + gradients, 0.0, 0.0
    if zero.offload_parameters:
        host, weights = host + weights, 0.0
    return States(weights, gradients, optimizer, gathered, host)


def recomputed_layers(dims: ModelDims, stage: StageConfig, world_size: int, memory: float) -> Recomputed:
    """Which layers of a stage run forward again: all, none, or under `auto` as few as a rank's `memory`, bytes, allows.

    `auto` counts on a pack of the whole budget, or of one sample of max_length where that is longer. It spares first
    the layers, of tower or language model, that cost the most FLOPs for the bytes they would keep.
    """
    every = Recomputed(dims.tower_layers if stage.learning_rate.vision_tower != "frozen" else 0, dims.layers)
    if stage.gradient_checkpointing != "auto":
        return every if stage.gradient_checkpointing else Recomputed()
    tokens, tiles = max(stage.pack.max_tokens, stage.max_length), stage.pack.max_tiles

    def held(recomputed: Recomputed) -> float:
        pack = activations(dims, stage, recomputed, *(np.array([n]) for n in (tokens, tiles, tokens)))
        return states(dims, stage, stage.zero, world_size).gpu + RESERVED + float(pack[0])

    def flops(recomputed: Recomputed) -> float:
        cost = sample_cost(dims, stage, recomputed)
        return cost.token * tokens + cost.tile * tiles

    def gain(part: str) -> float:
        spared = replace(every, **{part: 0})
        return (flops(every) - flops(spared)) / (held(spared) - held(every))

    chosen = every
    for part in sorted((part for part, num in vars(every).items() if num), key=gain, reverse=True):
        fewer = (replace(chosen, **{part: num}) for num in range(vars(every)[part]))
        chosen = next((found for found in fewer if held(found) <= FILLED * memory), chosen)
    return chosen


def activations(
    dims: ModelDims,
    stage: StageConfig,
    recomputed: Recomputed,
    tokens: np.ndarray,
    tiles: np.ndarray,
    supervised: np.ndarray,
) -> np.ndarray:
    """Bytes that a forward and its backward hold at their fullest, float64 [packs], from integers [packs].

    A layer that runs forward again keeps its input, and all that is inside of it when its turn comes: in the backward,
    when those above it, which ran it once, are done.
    """
    element = 2 if stage.precision == "bf16" else 4
    d, m, h = dims.tower_hidden, dims.tower_intermediate, dims.hidden
    width = 2 * (dims.heads + dims.kv_heads) * dims.head_dim  # queries, keys, values and what attention returns
    # two norms with input, fp32 copy and output; attention; the gate, what passes it, and their product
    inside = element * (4 * h + width + 4 * dims.intermediate) + 4 * 2 * h
    tower_inside = element * (8 * d + 2 * m)
    trains = {part: rate != "frozen" for part, rate in vars(stage.learning_rate).items()}

    def kept(num_layers: int, again: int, inside: float, hidden: int) -> float:
        return max(1, num_layers - again) * inside + again * hidden * element

    of_token = kept(dims.layers, recomputed.language, inside, h)
    of_token += 2 * h * element  # the embeddings, before and after the features
    trained_tower = kept(dims.tower_layers, recomputed.tower, tower_inside, d)
    of_patch = trained_tower if trains["vision_tower"] else tower_inside
    of_patch += (d + 3 * h) * element if trains["projector"] or trains["vision_tower"] else (d + 2 * h) * element
    logits = (2 * element + 2 * 4) * np.minimum(supervised, ROWS) * dims.vocab  # with their gradient, and both in fp32
    head = element * dims.head if trains["language_model"] and "language_model" not in stage.lora else 0  # its gradient
    held = of_token * tokens + of_patch * dims.patches * np.maximum(tiles, 1) + 2 * h * element * supervised
    return np.asarray(held + logits + head, np.float64)
