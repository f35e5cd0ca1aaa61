"""The dimensions of a model, from which its FLOPs, bytes and traffic follow."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig


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


def read_dims(config: PretrainedConfig) -> ModelDims:
    """The dimensions in the config of a checkpoint, of which no weights need be there."""
    return join_dims(config.text_config, config.vision_config, config.vision_feature_layer)


def num_tower_layers(config: PretrainedConfig) -> int:
    """How many layers of the tower run up to the hidden state `vision_feature_layer`."""
    return layers_up_to(config.vision_feature_layer, config.vision_config.num_hidden_layers)


def layers_up_to(feature_layer: int, num_layers: int) -> int:
    """Of a tower's layers, how many run. feature_layer: index of a hidden state; -1 = after the last, 0 = none."""
    return feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer


def join_dims(text: PretrainedConfig, tower: PretrainedConfig, feature_layer: int = -1) -> ModelDims:
    """Those of a language model and a tower. feature_layer: whose hidden state is taken, -1 = after the last."""
    return ModelDims(
        tower_hidden=tower.hidden_size,
        tower_intermediate=tower.intermediate_size,
        tower_layers=layers_up_to(feature_layer, tower.num_hidden_layers),
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
# Of the sizes in configs/model/, for a start that is not on disk; from config.json of the released checkpoints.
KNOWN_DIMS = {
    "Qwen/Qwen2-0.5B-Instruct": ModelDims(**_SO400M, hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2,
                                          head_dim=64, vocab=151936, tied=True),
    "Qwen/Qwen2-7B-Instruct": ModelDims(**_SO400M, hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4,
                                        head_dim=128, vocab=152064, tied=False),
    "Qwen/Qwen2-72B-Instruct": ModelDims(**_SO400M, hidden=8192, intermediate=29568, layers=80, heads=64, kv_heads=8,
                                         head_dim=128, vocab=152064, tied=False),
}  # fmt: skip
