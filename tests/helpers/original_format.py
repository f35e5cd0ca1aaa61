"""Tiny folders as the original trainer (LLaVA-NeXT) writes them, made from a Hugging Face model by plain renaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config, tiny_model

State = dict[str, torch.Tensor]

# written down from a checkpoint of the original: the Hugging Face name's beginning -> the original's
BEGINNINGS = {
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.image_newline": "model.image_newline",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}


def original_name(name: str) -> str:
    [(theirs, ours)] = [(ours, theirs) for theirs, ours in BEGINNINGS.items() if name.startswith(theirs)]
    return theirs + name.removeprefix(ours)


def original_state(model: LlavaOnevisionForConditionalGeneration) -> State:
    return {original_name(name): tensor.detach().clone() for name, tensor in model.named_parameters()}


def source_model(tied: bool = False, seed: int = 0) -> LlavaOnevisionForConditionalGeneration:
    return tiny_model(tiny_config(byte_tokenizer(), tied=tied), seed).eval()


def original_config(model: LlavaOnevisionForConditionalGeneration, **changes: Any) -> dict[str, Any]:
    text = model.config.text_config
    config = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": 32768,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": 1_000_000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(3x3)",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_hidden_size": model.config.vision_config.hidden_size,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_newline_position": "one_token",
        "tokenizer_padding_side": "right",
    }
    return config | changes


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tokenizer(folder: Path, *further: str) -> None:
    """The tiny tokenizer without the two tags, as the original saves it; `further` special tokens take their ids."""
    byte_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    added = [token for token in content["added_tokens"] if token["content"] not in ("<image>", "<video>")]
    for token in further:
        added.append({**added[-1], "id": added[-1]["id"] + 1, "content": token})
    path.write_text(json.dumps(content | {"added_tokens": added}))
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("extra_special_tokens", None)
    path.write_text(json.dumps(content | {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}))


def write_state(folder: Path, state: State, suffix: str = "safetensors", num_files: int = 1) -> None:
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = list(state)
    weight_map = {}
    for i in range(num_files):
        file = f"{stem}-{i + 1:05d}-of-{num_files:05d}.{suffix}" if num_files > 1 else f"{stem}.{suffix}"
        part = {name: state[name].contiguous() for name in names[i::num_files]}
        weight_map |= dict.fromkeys(part, file)
        if suffix == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    if num_files > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_full(
    folder: Path, model: LlavaOnevisionForConditionalGeneration, state: State | None = None, **changes: Any
) -> Path:
    write_config(folder, original_config(model, **changes))
    write_tokenizer(folder)
    write_state(folder, original_state(model) if state is None else state)
    return folder


def write_tower(folder: Path, model: LlavaOnevisionForConditionalGeneration, published: bool = True) -> Path:
    """A SigLIP folder with this model's tower; a published one has a further layer and a pooling head."""
    config = SiglipVisionConfig.from_dict(model.config.vision_config.to_dict())
    config.vision_use_head = published
    config.num_hidden_layers += published
    tower = SiglipVisionModel(config)
    fitting = tower.load_state_dict(model.model.vision_tower.state_dict(), strict=False)
    assert not fitting.unexpected_keys
    tower.save_pretrained(folder)
    return folder


def write_language_model(folder: Path, model: LlavaOnevisionForConditionalGeneration) -> Path:
    language_model = Qwen2ForCausalLM(model.config.text_config)
    language_model.model.load_state_dict(model.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(model.lm_head.state_dict())
    language_model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder
