"""Causal attention on a CPU as plain matrix products, block of queries by block of queries.

Enters: queries, keys and values of one document. Leaves: its attention output. A block of queries meets only the keys
up to its own end, which spares almost half of the products. The probabilities are kept for the backward, so documents
should be short: at 441 tokens, with 4 heads of 64, forward and backward take about 0.6 of the time of torch's
`scaled_dot_product_attention`, at 864 as long (docs/performance.md).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

BLOCK = 128  # queries


def blocked_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """[kv_heads, groups, L, dim] from queries of that shape and keys and values [kv_heads, L, dim].

    Worked case, L = 3 in blocks of 2: queries 0 and 1 meet keys 0 and 1, query 2 meets keys 0 to 2.
    """
    return _Blocked.apply(query, key, value, scale)  # type: ignore[no-untyped-call]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        query = query * scale
        out, kept = torch.empty_like(query), []
        for start, stop in _blocks(query.shape[2]):
            rows = query[:, :, start:stop]
            scores = (rows.flatten(1, 2) @ key[:, :stop].transpose(1, 2)).unflatten(1, rows.shape[1:3])
            scores[..., start:].masked_fill_(_unseen(stop - start, query.device), -torch.inf)
            seen = scores.softmax(-1)
            out[:, :, start:stop] = (seen.flatten(1, 2) @ value[:, :stop]).view_as(rows)
            kept.append(seen)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        query, key, value, *kept = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (start, stop), seen in zip(_blocks(query.shape[2]), kept, strict=True):
            rows, seen = grad[:, :, start:stop].flatten(1, 2), seen.flatten(1, 2)
            to_value[:, :stop] += seen.transpose(1, 2) @ rows
            to_seen = rows @ value[:, :stop].transpose(1, 2)
            to_scores = torch._softmax_backward_data(to_seen, seen, -1, seen.dtype)
            to_query[:, :, start:stop] = (to_scores @ key[:, :stop]).view_as(to_query[:, :, start:stop])
            to_key[:, :stop] += to_scores.transpose(1, 2) @ query[:, :, start:stop].flatten(1, 2)
        return to_query * ctx.scale, to_key, to_value, None


def _blocks(length: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, length, BLOCK), length]))


def _unseen(size: int, device: torch.device) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)
