"""The weights of a folder in Hugging Face form: which tensors it must hold, and how they are written in shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import torch
from transformers import PretrainedConfig

from llava_train.model.files.model_class import model_class
from llava_train.model.files.tensor_files import Spec, bytes_of, write_tensors
from llava_train.model.files.tensor_names import export_name
from llava_train.shared.json_files import write_json_file

MAX_SHARD_BYTES = 5_000_000_000
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


def expected_specs(config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Spec]:
    """Every parameter of the model, in its own names and order; tied ones appear once."""
    with torch.device("meta"):
        model = model_class(config)(config)
    return {name: Spec(dtype, tuple(parameter.shape)) for name, parameter in model.named_parameters()}


def write_weights(
    folder: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, torch.Tensor]]
) -> dict[str, str]:
    """Shards of at most 5 GB and their index, one tensor in memory at a time.

    specs: the model's parameters in its own names. tensors: these, in the same order. Returns the sha256 of each
    one's bytes as they came, under the same names. Raises ValueError where tensors differ from specs.
    """
    hashes: dict[str, str] = {}

    def hashed(count: int) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in islice(source, count):
            hashes[name] = hashlib.sha256(bytes_of(tensor)).hexdigest()
            yield export_name(name), tensor

    source = iter(tensors)
    shards = _plan_shards(specs)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        due = {export_name(name): specs[name] for name in names}
        write_tensors(folder / file, due, hashed(len(names)), {})
        weight_map |= dict.fromkeys(due, file)
    if next(source, None) is not None:
        raise ValueError("more tensors than specs")
    if len(shards) > 1:
        total = sum(spec.num_bytes for spec in specs.values())
        write_json_file(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return hashes


def _plan_shards(specs: Mapping[str, Spec]) -> list[list[str]]:
    """Names of each shard, in order: as many as fit, at least one."""
    shards, held = list[list[str]](), 0
    for name, spec in specs.items():
        if not shards or held + spec.num_bytes > MAX_SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += spec.num_bytes
    return shards


def peek_dtype(tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[torch.dtype, Iterator[tuple[str, torch.Tensor]]]:
    """The dtype of the first tensor, and all of them."""
    first = next(tensors)
    return first[1].dtype, chain(iter([first]), tensors)


def in_file_order(
    specs: Mapping[str, Spec], named_tensors: Iterable[tuple[str, torch.Tensor]], tied: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in the order of `specs`, early ones held back; ValueError where they differ.

    A tied `lm_head.weight` is passed over: it is the token embedding.
    """
    source = ((name, t) for name, t in named_tensors if not (tied and name == "lm_head.weight"))
    left, early = dict(specs), dict[str, torch.Tensor]()
    for due in specs:
        while due not in early:
            name, tensor = next(source, ("", None))
            if tensor is None:
                raise ValueError(f"not the weights of this config: without {', '.join(left)}")
            if left.pop(name, None) != Spec(tensor.dtype, tuple(tensor.shape)):
                raise ValueError(f"not the weights of this config: {name}, {tensor.dtype} {tuple(tensor.shape)}")
            early[name] = tensor
        yield due, early.pop(due)
    if more := [name for name, _ in source]:
        raise ValueError(f"not the weights of this config: {', '.join(more)}")
