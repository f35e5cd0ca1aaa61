"""What a plan assumes of a GPU: memory, peak of dense bf16 matrix products, links; from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    memory: float  # bytes
    peak: float  # FLOPs a second
    link: float  # bytes a second that it sends to another of its node: NVLink, Infinity Fabric, or PCIe 4 x16


GPUS = {
    "a100": Gpu(80e9, 312e12, 300e9),
    "a100_40": Gpu(40e9, 312e12, 300e9),
    "h100": Gpu(80e9, 989e12, 450e9),
    "h200": Gpu(141e9, 989e12, 450e9),
    "b200": Gpu(180e9, 2250e12, 900e9),
    "l40s": Gpu(48e9, 362e12, 32e9),
    "rtx4090": Gpu(24e9, 165e12, 32e9),
    "mi300x": Gpu(192e9, 1307e12, 448e9),
}
