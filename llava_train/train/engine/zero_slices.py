"""Where a rank holds which range of each parameter under ZeRO: DeepSpeed's flat tensors as named slices.

The slices of all ranks make up each parameter once, at every level, so what one layout wrote another can read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava_train.ranks.deepspeed_fields import internal


@dataclass(frozen=True)
class Slice:
    """Elements [start, start + numel) of the flattened parameter `name` of `shape`.

    They lie at `offset` of `flat`: the tensor that the optimiser updates, in which other slices may lie as well, or for
    a frozen parameter its values.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    flat: torch.Tensor
    offset: int
    written: bool  # by this rank; false where another one holds the same

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This slice of `flat`, or of an optimiser state in its form; a view, 1-D."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def trained_slices(
    named: Iterable[tuple[str, nn.Parameter]], optimizer: Any, level: int, rank: int, world_size: int
) -> list[Slice]:
    """fp32 master weights of what trains. `optimizer`: DeepSpeed's, of that level; 0 = torch's own on fp32 weights."""
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if level == 0:
        return list(_copies(trained, rank, world_size))
    if level == 3:
        return list(_partitions(trained, optimizer, rank))
    return list(_fragments(trained, optimizer))


def frozen_slices(named: Iterable[tuple[str, nn.Parameter]], level: int, rank: int, world_size: int) -> Iterator[Slice]:
    """Weights of what does not train, in the model's dtype."""
    frozen = [(name, parameter) for name, parameter in named if not parameter.requires_grad]
    if level < 3:
        yield from _copies(frozen, rank, world_size)
        return
    for name, parameter in frozen:
        yield from _partition(name, parameter, internal(parameter, "ds_tensor"), 0, rank)


def _copies(named: list[tuple[str, nn.Parameter]], rank: int, world_size: int) -> Iterator[Slice]:
    for i, (name, parameter) in enumerate(named):
        mine = i % world_size == rank
        yield Slice(name, tuple(parameter.shape), 0, parameter.numel(), parameter, 0, mine)


def _fragments(named: list[tuple[str, nn.Parameter]], optimizer: Any) -> Iterator[Slice]:
    """ZeRO 1 and 2: one flat tensor per parameter group, cut at equal lengths whatever parameter that hits."""
    # DeepSpeed's optimiser of bf16 at level 1 names them otherwise than that of the other cases
    flats = internal(optimizer, "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
    for name, parameter in named:
        mapping = internal(parameter, "_hp_mapping")
        if mapping is not None:
            flat = flats[internal(mapping, "param_group_index")]
            here, there = internal(mapping, "lp_fragment_address"), internal(mapping, "hp_fragment_address")
            yield Slice(name, tuple(parameter.shape), here.start, there.numel, flat, there.start, True)


def _partitions(named: list[tuple[str, nn.Parameter]], optimizer: Any, rank: int) -> Iterator[Slice]:
    """ZeRO 3: every parameter cut into equal parts, the last one padded."""
    positions, number = internal(optimizer, "grad_position"), internal(optimizer, "get_param_id")
    flats = internal(optimizer, "fp32_partitioned_groups_flat")
    for name, parameter in named:
        group, offset, _ = positions[number(parameter)]
        yield from _partition(name, parameter, flats[group], offset, rank)


def _partition(name: str, parameter: Any, flat: torch.Tensor, offset: int, rank: int) -> Iterator[Slice]:
    length = internal(parameter, "partition_numel")()
    start = rank * length
    numel = min(length, internal(parameter, "ds_numel") - start)
    if numel > 0:
        yield Slice(name, whole_shape(parameter, 3), start, numel, flat, offset, True)


def whole_shape(parameter: nn.Parameter, level: int) -> tuple[int, ...]:
    """Of all ranks' parts together."""
    return tuple(internal(parameter, "ds_shape") if level == 3 else parameter.shape)


def refresh_weights(optimizer: Any, level: int) -> None:
    """Puts changed fp32 master weights into the weights that the forward reads, on all ranks."""
    if level in (1, 2):
        internal(optimizer, "update_lp_params")()
    elif level == 3:
        unflatten = internal(optimizer, "unflatten")
        for master, flat, partitions in zip(
            internal(optimizer, "fp32_partitioned_groups_flat"),
            internal(optimizer, "fp16_partitioned_groups_flat"),
            internal(optimizer, "fp16_partitioned_groups"),
            strict=True,
        ):
            flat.data.copy_(master.data)
            for partition, values in zip(partitions, unflatten(flat, partitions), strict=True):
                partition.data = values.data
