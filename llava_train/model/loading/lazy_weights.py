"""A model whose weights stay in their files until each is asked for, so that no rank need hold it whole.

Its parameters have their shapes and dtype and take no memory; `read_weight` gives one its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from llava_train.model.files.stored_tensors import StoredTensors
from llava_train.model.loading.strict_load import load_strictly
from llava_train.start_folder.find import weight_files

_TIED = ("lm_head.weight", "embed_tokens.weight")


def load_unread(
    model_class: Any, key: str, folder: Path, dtype: torch.dtype, dropped: str = "^$", **kwargs: Any
) -> Any:
    """As `load_strictly`, which finds the parameter of every tensor, but nothing is read.

    In place of tensors it is given their numbers, stretched to their shapes: what it puts where, tells which is whose.
    """
    kwargs = {"config": AutoConfig.from_pretrained(folder, trust_remote_code=False), **kwargs}
    stored = StoredTensors(key, weight_files(folder))
    names = list(stored.specs)
    places = {name: i for i, name in enumerate(names)}
    places |= {head: places[embedding] for head, embedding in _equal_heads(stored, dtype)}
    numbers = {name: torch.tensor(float(i)).expand(stored.specs[name].shape) for name, i in places.items()}
    hf_model = load_strictly(model_class, key, folder, torch.float32, dropped, state_dict=numbers, **kwargs)
    for parameter in hf_model.parameters():
        name = names[int(parameter.data.flatten()[0])]
        parameter.data = torch.zeros((), dtype=dtype).expand(parameter.shape)
        parameter.read = lambda name=name: stored.read(name).to(dtype)
    for config in (hf_model.config, *(getattr(hf_model.config, name) for name in hf_model.config.sub_configs)):
        config.dtype = dtype
    hf_model.config._name_or_path = str(folder)
    return hf_model


def _equal_heads(stored: StoredTensors, dtype: torch.dtype) -> list[tuple[str, str]]:
    """The head and the embedding where files hold both with the same values: transformers ties no others then."""

    def values(name: str) -> torch.Tensor:
        return stored.read(name).to(dtype)

    heads, embeddings = ([name for name in stored.specs if name.endswith(end)] for end in _TIED)
    pairs = [(head, embedding) for head in heads for embedding in embeddings]
    return [(head, embedding) for head, embedding in pairs if torch.equal(values(head), values(embedding))]


def unread(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if hasattr(parameter, "read")]


def read_weight(parameter: nn.Parameter) -> None:
    """Gives an unread parameter its values; where the file has its dtype they are those mapped from it."""
    read: Callable[[], torch.Tensor] = parameter.read  # type: ignore[attr-defined]
    del parameter.read  # type: ignore[attr-defined]
    parameter.data = read()
