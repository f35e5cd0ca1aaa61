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
from transformers import PretrainedConfig

from llava_train.config.schema import StageConfig

ATTENTION_BACKWARD = 2.5  # forwards
ATTENTION_NEEDED = 2.0  # likewise, without the scores that are computed again


@dataclass(frozen=True)
class ModelDims:
    """Dimensions of tower and language model; names as in their config.json."""

    tower_hidden: int
    tower_intermediate: int
    tower_layers: int  # that run, up to the chosen hidden state
    tile_size: int  # pixels
    patch_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool  # whether the head is the embedding

    @property
    def patches(self) -> int:
        """Of one tile."""
        return (self.tile_size // self.patch_size) ** 2

    @property
    def tower_layer(self) -> int:
        """Weights of the matrices of one of the tower's layers."""
        return 4 * self.tower_hidden**2 + 2 * self.tower_hidden * self.tower_intermediate

    @property
    def layer(self) -> int:
        """Weights of the matrices of one of the language model's layers: attention, and an MLP of three."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.intermediate

    @property
    def projector(self) -> int:
        return self.tower_hidden * self.hidden + self.hidden**2

    @property
    def head(self) -> int:
        return self.hidden * self.vocab


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


def num_adapter(dims: ModelDims, part: str, rank: int) -> int:
    """Weights of adapters in every linear layer of a part."""
    d, m, h = dims.tower_hidden, dims.tower_intermediate, dims.hidden
    queries, keys = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    sides = {
        "vision_tower": dims.tower_layers * (4 * 2 * d + 2 * (d + m)),
        "projector": d + 3 * h,
        "language_model": dims.layers * (2 * (h + queries) + 2 * (h + keys) + 3 * (h + dims.intermediate)),
    }
    return rank * sides[part]


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


def read_dims(config: PretrainedConfig) -> ModelDims:
    """The dimensions in a LlavaOnevision configuration, of which no weights need be there."""
    return join_dims(config.text_config, config.vision_config, config.vision_feature_layer)


def join_dims(text: PretrainedConfig, tower: PretrainedConfig, feature_layer: int = -1) -> ModelDims:
    """Those of a language model and a tower. feature_layer: whose hidden state is taken, -1 = after the last."""
    layers = tower.num_hidden_layers
    return ModelDims(
        tower_hidden=tower.hidden_size,
        tower_intermediate=tower.intermediate_size,
        tower_layers=feature_layer if feature_layer >= 0 else layers + 1 + feature_layer,
        tile_size=tower.image_size,
        patch_size=tower.patch_size,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab=text.vocab_size,
        tied=bool(text.tie_word_embeddings),
    )


_SO400M = {"tower_hidden": 1152, "tower_intermediate": 4304, "tower_layers": 26, "tile_size": 384, "patch_size": 14}
KNOWN = {  # of the sizes in configs/model/, for a start that is not on disk; config.json of the released checkpoints
    "Qwen/Qwen2-0.5B-Instruct": ModelDims(**_SO400M, hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2,
                                          head_dim=64, vocab=151936, tied=True),
    "Qwen/Qwen2-7B-Instruct": ModelDims(**_SO400M, hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4,
                                        head_dim=128, vocab=152064, tied=False),
    "Qwen/Qwen2-72B-Instruct": ModelDims(**_SO400M, hidden=8192, intermediate=29568, layers=80, heads=64, kv_heads=8,
                                         head_dim=128, vocab=152064, tied=False),
}  # fmt: skip
