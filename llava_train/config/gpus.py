"""What a plan assumes of a GPU: memory, and the peak of dense bf16 matrix products, from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    memory: float  # bytes
    peak: float  # FLOPs a second


GPUS = {
    "a100": Gpu(80e9, 312e12),
    "a100_40": Gpu(40e9, 312e12),
    "h100": Gpu(80e9, 989e12),
    "h200": Gpu(141e9, 989e12),
    "b200": Gpu(180e9, 2250e12),
    "l40s": Gpu(48e9, 362e12),
    "rtx4090": Gpu(24e9, 165e12),
    "mi300x": Gpu(192e9, 1307e12),
}
