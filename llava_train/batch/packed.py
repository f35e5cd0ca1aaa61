"""`PackedBatch`: several samples ("documents") laid end to end in one row, the unit that goes through the model.

Enters: what `data.collate` lays out. Leaves: what `model.forward` computes on. Worked case, a 3-token and a 2-token
document: `input_ids = [a b c d e]`, `position_ids = [0 1 2 0 1]`, `cu_seqlens = [0 3 5]`, `labels = [-100 b c -100 e]`,
`supervised = [1 2 4]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from llava_train.family.base import VisualLayout

IGNORE_INDEX = -100


@dataclass(frozen=True)
class PackedBatch:
    """T tokens in D documents with V visual tokens from N tiles of S x S pixels.

    input_ids         int64 [T]      placeholders already expanded, one id per visual token
    labels            int64 [T]      under input_ids, unshifted; IGNORE_INDEX: not supervised, or a document's first
    supervised        int64 [S]      where labels count; counted here, since a GPU would make its host wait for it
    position_ids      int64 [T]      from 0 in each document
    cu_seqlens        int32 [D + 1]  document boundaries, the only ones: attention reads these
    max_seqlen        longest document
    pixel_values      uint8 [N, 3, S, S]  all tiles and frames in order; the model normalises on the device
    visual_positions  int64 [V]      where the visual features go, in the order of `visuals`
    visuals           one layout per image or video, in reading order over all documents
    sample_ids        D names "source/record", for error messages
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    supervised: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    pixel_values: torch.Tensor
    visual_positions: torch.Tensor
    visuals: tuple[VisualLayout, ...]
    sample_ids: tuple[str, ...]

    @property
    def num_supervised(self) -> int:
        return len(self.supervised)

    def to(self, device: torch.device | str) -> PackedBatch:
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)
        }
        return replace(self, **moved)
