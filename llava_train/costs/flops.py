"""What a sample costs, as FLOPs in closed form: forward and backward of tower, projector, language model and head.

Enters: a model's dimensions and which parts train. Leaves: a `SampleCost`, four numbers that turn tokens, tiles and
supervised tokens into FLOPs. A multiplication with its addition is 2 FLOPs. Matrix products are counted and nothing
else, as in Narayanan et al. 2021 (arXiv 2104.04473, appendix); norms, activations and the optimiser are not.

Backward: a matrix product costs as much again for its input and for its weight, where these need gradients. Attention
has no weights; its backward takes 2.5 forwards, since the scores are computed again (Dao 2023, arXiv 2307.08691,
section 4.1), of which 2 are counted as needed (`needed_cost`). With gradient checkpointing the layers that need a
gradient run forward once more, but for the last product, whose output nothing in the backward reads: torch stops
before it. Where that layer has an adapter, what it stops before is the adapter's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llava_train.config.schema import StageConfig
from llava_train.costs.dims import ModelDims, num_adapter

ATTENTION_BACKWARD = 2.5  # forwards
ATTENTION_NEEDED = 2.0  # likewise, without the scores that are computed again


@dataclass(frozen=True)
class SampleCost:
    """FLOPs of a sample: a tile, a token, a pair of tokens (half of them are seen: attention is causal), a label."""

    tile: float
    token: float
    pair: float
    label: float

    def __call__(self, lengths: np.ndarray, tiles: np.ndarray, supervised: np.ndarray) -> np.ndarray:
        """float64 [samples] from integers [samples]. Documents of a pack do not see each other: costs add up."""
        length = lengths.astype(np.float64)
        return self.tile * tiles + (self.token + self.pair * length) * length + self.label * supervised


@dataclass(frozen=True)
class Recomputed:
    """How many layers run forward again in the backward, as gradient checkpointing makes them: the first ones."""

    tower: int = 0
    language: int = 0


def needed_cost(dims: ModelDims, stage: StageConfig) -> SampleCost:
    """FLOPs that a stage's samples need whatever computes them, of which MFU is made (Chowdhery et al. 2022, arXiv
    2204.02311, appendix B)."""
    return sample_cost(dims, stage, attention_backward=ATTENTION_NEEDED)


def sample_cost(
    dims: ModelDims,
    stage: StageConfig,
    recomputed: Recomputed = Recomputed(),
    attention_backward: float = ATTENTION_BACKWARD,
) -> SampleCost:
    """FLOPs of a stage's samples as they run, with those of layers that run forward again.

    Worked case: everything trains and nothing is recomputed: a token takes 3 * 2 FLOPs per weight of its layers.
    """
    trains = {part: rate != "frozen" for part, rate in vars(stage.learning_rate).items()}
    whole = {part: trains[part] and part not in stage.lora for part in trains}
    tower: float = dims.tower_layers * (1 + int(trains["vision_tower"]) + int(whole["vision_tower"])) * dims.tower_layer
    last = 0 if "vision_tower" in stage.lora else dims.tower_hidden * dims.tower_intermediate
    tower += recomputed.tower * (dims.tower_layer - last)
    tower_attention = dims.tower_layers * (1 + attention_backward * trains["vision_tower"]) + recomputed.tower
    own = 1 + int(whole["projector"])
    projector = dims.tower_hidden * dims.hidden * (own + int(trains["vision_tower"]))
    projector += dims.hidden**2 * (own + int(trains["vision_tower"] or trains["projector"]))
    model: float = dims.layers * (2 + int(whole["language_model"])) * dims.layer
    last = 0 if "language_model" in stage.lora else dims.hidden * dims.intermediate
    model += recomputed.language * (dims.layer - last)
    attention = dims.layers * (1 + attention_backward) + recomputed.language

    adapters = {part: num_adapter(dims, part, adapter.rank) for part, adapter in stage.lora.items()}
    tower += adapters.get("vision_tower", 0) * (3 + recomputed.tower / max(1, dims.tower_layers))
    projector += 3 * adapters.get("projector", 0)
    model += adapters.get("language_model", 0) * (3 + recomputed.language / dims.layers)

    patch = 2 * (tower + 2 * dims.tower_hidden * dims.patches * tower_attention)
    patch += 2 * 3 * dims.patch_size**2 * dims.tower_hidden * (1 + int(whole["vision_tower"]))
    width = dims.heads * dims.head_dim
    return SampleCost(
        tile=dims.patches * (patch + 2.0 * projector),
        token=2.0 * model,
        pair=2 * width * attention,
        label=2.0 * dims.head * (2 + int(whole["language_model"])),
    )
