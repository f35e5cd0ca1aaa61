"""A checkpoint with random weights, made in a second, no download: for tests and `model.init=tiny`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from llava_train.config.schema import VideoConfig
from llava_train.family.base import HFModel
from llava_train.family.registry import tiny_family
from llava_train.model.files.model_class import model_class
from llava_train.model.hf_folder.card import Card
from llava_train.model.hf_folder.folder import write_checkpoint
from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
from llava_train.text.placeholders import add_tags

# the split of Qwen2's tokenizer.json: contractions, words, single digits, punctuation, newlines, spaces
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then Qwen2's special tokens and `<image>`, `<video>`: 261 ids."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerBase,
    tied: bool = True,
    tile_size: int = 28,
    patch_size: int = 7,
    max_tiles: int = 9,
    vision: Mapping[str, int] = MappingProxyType({}),
    text: Mapping[str, int] = MappingProxyType({}),
) -> Any:
    """Two layers each; more embedding rows than tokens, as in the published checkpoints.

    vision, text: dimensions that are another, by their names in config.json.
    """
    tower: dict[str, int] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **vision,
    }
    language: dict[str, Any] = {
        "vocab_size": (len(tokenizer) + 64) // 64 * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        **text,
    }
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    vocabulary = tokenizer.get_vocab()
    config = Qwen2Config(**language, rope_parameters=rope, tie_word_embeddings=tied)
    ids = vocabulary["<image>"], vocabulary["<video>"]
    return tiny_family().tiny_config(config, tower, tile_size, patch_size, max_tiles, ids)


def tiny_model(config: PretrainedConfig, seed: int = 0) -> HFModel:
    """Random fp32 weights, the same for the same seed.

    Drawn larger than transformers does (standard deviation 0.02), which leaves so small a model deaf to its input.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name == "model.image_newline":
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith(".bias"):
                parameter.normal_(std=0.1, generator=generator)
    return model


def make_tiny(out: Path, tokenizer_folder: Path | None = None, *, seed: int = 0, **config: Any) -> Path:
    """Writes a checkpoint folder, unless it is there, and returns it. `config`: arguments of `tiny_config`."""
    if out.exists():
        return out
    unfinished = out.with_name(f"{out.name}.{os.getpid()}")
    tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
    if tokenizer_folder:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    add_tags(tokenizer)
    hf_model = tiny_model(tiny_config(tokenizer, **config), seed)
    video = VideoConfig(fps=1.0, max_frames=4)
    preparation = Preparation(checkpoint_geometry(hf_model.config), "qwen", "front", video)
    card = Card(recipe="tiny", stage="none", init="random weights", data={}, settings={"seed": str(seed)}, figures={})
    write_checkpoint(unfinished, hf_model.state_dict().items(), hf_model.config, tokenizer, preparation, card)
    try:
        unfinished.rename(out)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
    return out
