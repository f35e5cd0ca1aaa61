"""A checkpoint folder in Hugging Face form that transformers 4.57 and 5.x load alike, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from llava_train.family.base import Family, Geometry
from llava_train.family.registry import family_of
from llava_train.model.files.model_class import model_class
from llava_train.model.hf_folder.card import Card, card_record, render_card
from llava_train.model.hf_folder.preparation import PREPARATION_FILE, Preparation, checkpoint_geometry, notes_of
from llava_train.model.hf_folder.weights import expected_specs, in_file_order, peek_dtype, write_weights
from llava_train.shared.json_files import read_json, write_json_file
from llava_train.shared.whole_files import whole_folder
from llava_train.text.base import TemplateName
from llava_train.text.chat_template import chat_template
from llava_train.text.checkpoint_template import stage_template
from llava_train.text.named_templates import chat_name


def write_checkpoint(
    out: Path,
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    preparation: Preparation,
    card: Card,
) -> None:
    """Writes the folder `out`, replacing one that is there.

    named_tensors: all parameters of the model in its own names, on CPU; one is held in memory at a time where they come
    in the model's order. Raises ValueError, and leaves `out` as it was, where they are not exactly those of `config`.
    """
    dtype, tensors = peek_dtype(iter(named_tensors))
    specs = expected_specs(config, dtype)
    with whole_folder(out) as folder:
        write_weights(folder, specs, in_file_order(specs, tensors, config.tie_word_embeddings))
        write_support(folder, config, tokenizer, preparation, dtype)
        write_card(folder, card, preparation, family_of(config))


def write_support(
    folder: Path,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    preparation: Preparation,
    dtype: torch.dtype,
) -> None:
    """All files of a checkpoint of that dtype but its weights and its card.

    Where it was trained by template checkpoint, the chat template is the one that the tokenizer carries, as it stands.
    """
    geometry = preparation.geometry
    if not geometry.is_in_transformers:  # its files keep what the config says
        geometry = checkpoint_geometry(config)
    write_json_file(folder / "config.json", _config(config, geometry, dtype))
    write_json_file(folder / "generation_config.json", _generation_config(tokenizer, preparation))
    _write_tokenizer(folder, tokenizer, preparation.template)
    if preparation.template == "checkpoint":
        chat = cast(str, tokenizer.chat_template)
    else:
        chat = chat_template(preparation.template, preparation.tag_policy)
    (folder / "chat_template.jinja").write_bytes(chat.encode())
    for name, content in family_of(config).processor_files(geometry).items():
        write_json_file(folder / name, content)
    write_json_file(folder / PREPARATION_FILE, notes_of(preparation))


def write_card(folder: Path, card: Card, preparation: Preparation, family: Family, is_adapter: bool = False) -> None:
    """README.md, and in the notes what a later stage must know to tell the whole recipe."""
    notes = folder / PREPARATION_FILE
    write_json_file(notes, read_json(notes) | card_record(card))
    text = render_card(card, family, not preparation.geometry.is_in_transformers, is_adapter)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _config(config: PretrainedConfig, geometry: Geometry, dtype: torch.dtype) -> dict[str, Any]:
    """The config with this geometry. `rope_parameters` are said twice: 4.57 reads `rope_theta` and `rope_scaling`."""
    content = config.to_dict()
    content.pop("quantization_config", None)  # of how the model was trained; what is written is not quantised
    text = content["text_config"]
    for part in (content, text, content["vision_config"]):
        part.pop("_name_or_path", None)  # the folder that it was loaded from
    scaling = dict(text["rope_parameters"])
    text["rope_theta"] = scaling.pop("rope_theta")
    text["tie_word_embeddings"] = content["tie_word_embeddings"]  # 5.x reads either, 4.57 the text's
    if scaling["rope_type"] != "default":
        text["rope_scaling"] = scaling
    content["architectures"] = [model_class(config).__name__]
    content["dtype"] = text["dtype"] = content["vision_config"]["dtype"] = str(dtype).removeprefix("torch.")
    return content | family_of(config).config_fields(geometry)


def _generation_config(tokenizer: PreTrainedTokenizerBase, preparation: Preparation) -> dict[str, Any]:
    """Qwen2 ends at <|im_end|> and its padding, <|endoftext|>; Vicuna, padded with <unk> or nothing, at </s> alone.

    A base model's own end token is not the one that its answers were trained to end with: that one joins it.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ends = [end] if pad in (end, None, tokenizer.unk_token_id) else [end, pad]
    name = chat_name(preparation.template)
    template = stage_template(name, "clean", preparation.tag_policy, tokenizer, "model.init")
    learned = tokenizer.get_vocab().get(template.end)
    if learned is not None and learned not in ends:
        ends.insert(0, learned)
    return {"eos_token_id": ends, "pad_token_id": end if pad is None else pad}


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, template: TemplateName) -> None:
    """Tokenizer files; transformers 5 writes a list and a class name on which 4.57 fails, and omits what it returns."""
    if template == "vicuna":  # its chat template writes <s>, and a second one would come before it
        tokenizer = deepcopy(tokenizer)
        cast(Any, tokenizer).add_bos_token = False
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = read_json(path)
    for key in ("backend", "is_local", "local_files_only", "chat_template"):
        content.pop(key, None)
    if "extra_special_tokens" in content:
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    if content["tokenizer_class"] == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if hasattr(tokenizer, "legacy"):  # Llama's: left out, these would come back as the defaults of each major
        content |= {"legacy": tokenizer.legacy, "add_bos_token": cast(Any, tokenizer).add_bos_token}
    content["model_input_names"] = ["input_ids", "attention_mask"]  # that class would add token_type_ids
    write_json_file(path, content)
