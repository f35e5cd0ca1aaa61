"""What a rank needs of memory, in closed form: the model's states at a ZeRO level, and the activations of a pack.

Enters: dimensions, a stage's settings, the number of ranks, tokens and tiles of packs. Leaves: bytes on the GPU and on
the host. States as in Rajbhandari et al. 2020 (arXiv 1910.02054, section 3) and in `train/engine/engine.py`, which
accumulates gradients in fp32; activations as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4), tensor by tensor
for these layers, with attention that keeps no scores, and held to models of full size that compute nothing
(tests/fakegpu). An estimate: docs/performance.md sets it beside what GPUs have held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from llava_train.config.schema import StageConfig, ZeroConfig
from llava_train.costs.dims import ModelDims, num_adapter
from llava_train.costs.flops import Recomputed, sample_cost

GRADIENT = 4  # bytes of a trained weight's gradient, which is accumulated in fp32
MOMENT_BYTES = 8  # bytes of AdamW's two moments of a trained weight, fp32
MASTER = 4  # bytes of the fp32 copy of a trained weight, which DeepSpeed makes of fp32 weights too
WEIGHT = {"none": 0.0, "8bit": 1.0, "4bit": 0.53}  # bytes of a quantised weight, with its scales
LIVE = 1_000_000_000  # weights that ZeRO 3 keeps gathered at the most, as train/engine/engine.py sets it
BUCKET = 200_000_000  # gradients on their way between ranks at ZeRO 2 and 3, likewise; at ZeRO 2 there are two
RESERVED = 2e9  # bytes of the CUDA context, of the libraries and of what the allocator cannot use; a guess
ROWS = 2048  # of logits at a time, as in model/forward/loss.py
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
        num_adapter(dims, part, stage.lora[part].rank) if part in stage.lora else wholes[part]
        for part, rate in vars(stage.learning_rate).items()
        if rate != "frozen"
    )


def _largest_trained(dims: ModelDims, stage: StageConfig) -> int:
    """Weights of the largest matrix that trains whole."""
    sizes = {
        "vision_tower": dims.tower_hidden * dims.tower_intermediate,
        "projector": max(dims.hidden, dims.tower_hidden) * dims.hidden,
        "language_model": dims.head,
    }
    rates = vars(stage.learning_rate)
    return max((sizes[part] for part in sizes if rates[part] != "frozen" and part not in stage.lora), default=0)


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
    """The model's states on one of `world_size` ranks, as `train/engine/engine.py` runs DeepSpeed 0.19.8.

    Of the moment when they are most: at the end of a backward that is not the first. At ZeRO 3 no weight outlives its
    use in the forward: DeepSpeed's linear layers keep the parameter, which is empty then, and no view of its values.
    """
    wholes, trained = num_parameters(dims), num_trained(dims, stage)
    bf16 = stage.precision == "bf16"
    level = max(1, zero.level) if bf16 else zero.level  # bf16 without ZeRO runs as level 1
    element = 2 if bf16 else 4
    quantised = dims.layers * dims.layer if stage.load_in != "none" else 0
    num_weights = sum(wholes.values())
    weights = (num_weights - quantised) * element + quantised * WEIGHT[stage.load_in]
    weights /= world_size if level == 3 else 1
    shares = world_size if level >= 1 else 1
    gradients = trained * GRADIENT / (world_size if level >= 2 else 1)
    if bf16 and level == 1:
        gradients += trained * element  # a micro-batch's own stay beside the sum (BF16_Optimizer)
    optimizer = trained * (MOMENT_BYTES + (MASTER if level >= 1 else 0)) / shares
    gathered = {2: 2.0 * min(BUCKET, trained), 3: float(BUCKET + min(LIVE, num_weights))}.get(level, 0.0) * element
    host = 0.0
    if zero.offload_optimizer and level == 3:
        host = optimizer + 2 * gradients  # summed, and again as the optimiser reads them
        gradients, optimizer = 0.0, 0.0
    elif zero.offload_optimizer:
        largest = element * _largest_trained(dims, stage)  # a gradient on its way
        host = optimizer + gradients + trained * element / shares + largest  # with the weights on their way back
        gathered += largest
        optimizer = 0.0
        if not bf16:  # where the sum has the weights' dtype it is the host that adds
            host, gradients = host + trained * GRADIENT / shares, 0.0
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
        more = held(spared) - held(every)
        return (flops(every) - flops(spared)) / more if more > 0 else math.inf

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

    The fullest of four moments, of which no two coincide: the loss, when a chunk of logits stands beside all that is
    kept; and the first backward of a layer of the language model, of the projector and of a layer of the tower, when
    what a recomputed layer keeps and a backward's own tensors stand beside what is still kept. A layer that runs
    forward again keeps its input until then.
    """
    element = 2 if stage.precision == "bf16" else 4
    trains = {part: rate != "frozen" for part, rate in vars(stage.learning_rate).items()}
    d, m, h = dims.tower_hidden, dims.tower_intermediate, dims.hidden
    patches = dims.patches * np.maximum(tiles, 1)

    inside = _layer_inside(dims, stage)
    layers = _kept(dims.layers, recomputed.language, inside, element * h) * tokens
    tower_inside = element * (8 * d + 2 * m)  # inputs and outputs of two norms, four projections' outputs, and the MLP
    tower = _kept(dims.tower_layers, recomputed.tower, tower_inside, element * d) * patches
    tower += element * 3 * dims.tile_size**2 * np.maximum(tiles, 1)  # the pixels
    projector = element * (d + 2 * h) * patches
    if not trains["vision_tower"]:
        tower, projector = 0.0 * tower, projector if trains["projector"] else 0.0 * projector
    below = tower + projector + element * h * np.minimum(tokens, patches)  # the features in their places
    whole = trains["language_model"] and "language_model" not in stage.lora
    head = element * dims.head if whole else 0  # its gradient, which a tied embedding adds to at the end
    waiting = head if dims.tied else 0

    # of what the last layer keeps, but its input
    top = 0 if recomputed.language < dims.layers else inside - element * h
    top_tower = 0 if recomputed.tower < dims.tower_layers else tower_inside
    norm = element * h * tokens  # what the last one reads
    predicting = 2 * element * h * supervised  # states, and their gradient
    moments = [
        layers + below + norm + predicting + head + _chunk(element, supervised) * dims.vocab,
        layers + (top + element * h) * tokens + _mlp_backward(dims, stage) * tokens + below + waiting,
        tower + element * (d + 4 * h) * patches * bool(projector.any()) + element * h * tokens + waiting,
        tower + (top_tower + element * (d + m)) * patches + element * h * tokens + waiting,
    ]
    if not trains["vision_tower"]:  # its forward, of which nothing is kept
        moments[3] = element * (2 * d + 2 * m) * patches + element * h * tokens
    return np.asarray(np.maximum.reduce(moments), np.float64)


def _kept(num_layers: int, again: int, inside: float, held: float) -> float:
    """Bytes of a token or patch: of layers that keep what is inside, and the inputs of those that run forward again."""
    return (num_layers - again) * inside + again * held


def _layer_inside(dims: ModelDims, stage: StageConfig) -> float:
    """Bytes of a token that a layer of the language model keeps."""
    element = 2 if stage.precision == "bf16" else 4
    h, m, queries = dims.hidden, dims.intermediate, dims.heads * dims.head_dim
    attention = element * 2 * (dims.heads + dims.kv_heads) * dims.head_dim + 4 * dims.heads  # q, k, v, output; log sums
    gated = element * 3 * m  # the gate, what passes it, and it by its activation
    norms = element * 2 * h  # what they read
    adapter = stage.lora.get("language_model")
    whole = adapter is None and stage.learning_rate.language_model != "frozen"
    inputs = element * (2 * h + m)  # of the products, where a weight trains that multiplies them
    masks = 0.0
    if adapter is not None and adapter.dropout:  # each adapter reads a copy of its own
        masks = (element + 1) * (5 * h + queries + m)
    read = whole or (adapter is not None and not masks) or stage.zero.level == 3  # there DeepSpeed's layers keep them
    return attention + gated + norms + masks + (inputs if read else 0.0)


def _mlp_backward(dims: ModelDims, stage: StageConfig) -> float:
    """Bytes of a token beyond what a layer keeps, when its MLP's product goes back into its factors: six of the MLP's
    width then, of which the product itself, where it was kept, is gone."""
    element = 2 if stage.precision == "bf16" else 4
    frozen = stage.learning_rate.language_model == "frozen" and stage.zero.level < 3
    return element * (3 if frozen else 2) * dims.intermediate


def _chunk(element: int, supervised: np.ndarray) -> np.ndarray:
    """Bytes by vocabulary of a chunk of rows: logits, in fp32, their logarithms; and the gradient of the one before."""
    of_row = element + (4 if element == 2 else 0) + 4
    first, second = np.minimum(supervised, ROWS), np.clip(supervised - ROWS, 0, ROWS)
    return np.maximum(of_row * first, of_row * second + element * ROWS * (second > 0))
