"""Folders of tiny random language models and vision towers, as published ones are written: one per family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_train.config.schema import ModelConfig
from llava_train.model.loading.tiny_model import byte_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
# Qwen2.5's tokens after Qwen2's three, ids 151646 to 151664; the thirteen in <| |> up to video_pad, with <|im_start|>
# and <|im_end|>, are its additional special tokens, the others are added but not special
QWEN2_5_SPECIAL = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
QWEN2_5_PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # so that the scaling bends frequencies of so small a head
}
BODY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL_BODY = BODY | {"hidden_size": 16, "num_hidden_layers": 1}  # beside a vocabulary of published size
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}


@dataclass(frozen=True)
class Family:
    """A language model's classes, its tokenizer, and the template that fits it.

    rows: of its embedding. joined_rows: once `<image>` and `<video>` have theirs, at `image_id` and the id after it.
    """

    model_class: Any
    config: Any
    tokenizer: Any  # makes it
    template: str
    rows: int
    joined_rows: int
    image_id: int


def qwen2_5_tokenizer() -> PreTrainedTokenizerBase:
    """22 added tokens, 151643 to 151664: torchtune, models/qwen2_5/_tokenizer.py, commit 00e79f8."""
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "qwen2_tokenizer")
    special = ["<|im_start|>", "<|im_end|>", *QWEN2_5_SPECIAL]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in QWEN2_5_SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in QWEN2_5_PLAIN])
    tokenizer.extra_special_tokens = special
    return tokenizer


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """128,256 ids as Llama 3 has: 128,000 of text, here bytes and fillers, and 256 special ones; none pads."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"filler{i}" for i in range(128_000 - 256))]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 9: "<|eot_id|>"}
    special = [named.get(i, f"<|reserved_special_token_{i}|>") for i in range(256)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def llama2_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(GOLDEN / "llama_tiny_tokenizer")


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


FAMILIES = {
    "qwen2": Family(
        Qwen2ForCausalLM,
        Qwen2Config(vocab_size=320, tie_word_embeddings=True, rope_parameters=_rope(1e6), **BODY),
        byte_tokenizer,
        "qwen",
        rows=320,
        joined_rows=320,
        image_id=259,
    ),
    "qwen2.5": Family(
        Qwen2ForCausalLM,
        Qwen2Config(vocab_size=151_936, tie_word_embeddings=True, rope_parameters=_rope(1e6), **SMALL_BODY),
        qwen2_5_tokenizer,
        "qwen",
        rows=151_936,
        joined_rows=151_936,
        image_id=151_665,
    ),
    "qwen3": Family(
        Qwen3ForCausalLM,
        Qwen3Config(vocab_size=320, head_dim=24, rope_parameters=_rope(5e6), **BODY),
        byte_tokenizer,
        "qwen",
        rows=320,
        joined_rows=320,
        image_id=259,
    ),
    "llama3": Family(
        LlamaForCausalLM,
        LlamaConfig(vocab_size=128_256, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE, **SMALL_BODY),
        llama3_tokenizer,
        "plain",
        rows=128_256,
        joined_rows=128_320,
        image_id=128_256,
    ),
    "vicuna": Family(
        LlamaForCausalLM,
        LlamaConfig(vocab_size=1024, pad_token_id=0, rope_parameters=_rope(1e4), **BODY),
        llama2_tokenizer,
        "vicuna",
        rows=1024,
        joined_rows=1088,
        image_id=1024,
    ),
    "mistral": Family(
        MistralForCausalLM,
        MistralConfig(vocab_size=1024, head_dim=24, sliding_window=4096, rope_parameters=_rope(1e6), **BODY),
        llama2_tokenizer,
        "vicuna",
        rows=1024,
        joined_rows=1088,
        image_id=1024,
    ),
}


def write_language_model(folder: Path, name: str, max_shard_size: str = "1GB", **changes: Any) -> Path:
    """The family's folder; `changes`: to its config. Weights are drawn larger than usual: all of them then matter."""
    family = FAMILIES[name]
    config = type(family.config).from_dict(family.config.to_dict() | changes)
    torch.manual_seed(0)
    model = family.model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim == 1 else 0.2)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    family.tokenizer().save_pretrained(folder)
    return folder


def siglip_tower(**changes: Any) -> SiglipVisionModel:
    """A tower cut as LLaVA-OneVision uses it."""
    torch.manual_seed(1)
    return SiglipVisionModel(SiglipVisionConfig(**TOWER | {"vision_use_head": False} | changes))


def published_siglip(**changes: Any) -> SiglipModel:
    """Both encoders, the pooling head and all layers, as published."""
    torch.manual_seed(1)
    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=TOWER | changes))


def write_parts(root: Path, name: str, **changes: Any) -> ModelConfig:
    """A family's language model beside a published SigLIP; `changes`: as `write_language_model` takes them."""
    write_language_model(root / "lm", name, **changes)
    published_siglip().save_pretrained(root / "tower")
    return ModelConfig("", str(root / "lm"), str(root / "tower"), "auto")
