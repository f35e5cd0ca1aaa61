"""A start from parts whose weights stay in their files is, once these are read, the start that was read whole."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from part_folders import write_parts
from safetensors.torch import load_file, save_file

from llava_train.model.loading.lazy_weights import load_unread, read_weight, unread
from llava_train.model.loading.load_model import load_model
from llava_train.model.loading.strict_load import load_strictly

ROWS = {"enough rows": 1088, "too few": 1024}  # for the tokenizer's 1024 tokens, <image> and <video>
SHARDS = {"one file": "1GB", "shards": "100KB"}


def names_and_values(model) -> dict[str, torch.Tensor]:
    for parameter in unread(model.parameters()):
        read_weight(parameter)
    return {name: tensor.clone() for name, tensor in model.named_parameters()}


def assert_same_start(parts, precision: str, folder: Path) -> int:
    """Returns how many weights had stayed in their files."""
    ours, whole = (load_model(parts, precision, folder, load=load).model for load in (load_unread, load_strictly))
    num_unread = len(unread(ours.parameters()))
    found, expected = names_and_values(ours), names_and_values(whole)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    ties = [model.lm_head.weight is model.model.language_model.embed_tokens.weight for model in (ours, whole)]
    assert ties == [whole.config.tie_word_embeddings] * 2
    return num_unread


@pytest.mark.parametrize(("rows", "shards"), product(ROWS, SHARDS))
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_left_in_their_files_are_those_read_whole(tmp_path, tied, rows, shards):
    changes = {"tie_word_embeddings": tied, "vocab_size": ROWS[rows], "max_shard_size": SHARDS[shards]}
    parts = write_parts(tmp_path, "vicuna", **changes)
    assert (len(list(Path(parts.language_model).glob("*.safetensors"))) > 1) == (shards == "shards")
    assert assert_same_start(parts, "bf16" if tied else "fp32", tmp_path) > 50


@pytest.mark.parametrize("rows", ROWS)
def test_a_head_stored_beside_the_embedding_that_it_equals_stays_tied(tmp_path, rows):
    parts = write_parts(tmp_path, "vicuna", tie_word_embeddings=True, vocab_size=ROWS[rows])
    file = Path(parts.language_model) / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    assert_same_start(parts, "fp32", tmp_path)
