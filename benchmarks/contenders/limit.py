"""What a step cannot go below: the model's own matrix products and attention, forward and backward, and nothing else.

Products at the sizes of the step's packs; attention document by document and tile by tile, by torch's kernel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention
from turns import Turns, endless, settings

from llava_train.batch.packed import PackedBatch
from llava_train.config.load import load
from llava_train.model.forward.cpu_bf16 import lacks_bf16
from llava_train.model.loading.load_model import DTYPES
from llava_train.ranks.process_group import start_ranks
from llava_train.ranks.signals import StopSignal
from llava_train.train.bench import Bench, products_of


class Limit:
    def __init__(self, bench: Bench, dtype: torch.dtype):
        self.dims, self.dtype = bench.dims, dtype
        self.tower_heads = bench.engine.module.hf_model.config.vision_config.num_attention_heads
        self.drawn = lru_cache(lambda *shape: torch.randn(shape).to(dtype))  # a tensor for each shape

    def run(self, batch: PackedBatch) -> None:
        dims, num_tiles = self.dims, len(batch.pixel_values)
        sizes = (len(batch.input_ids), num_tiles, batch.num_supervised)
        for (rows, width, out), number in products_of(dims, *sizes).items():
            x, weight, grad = self.drawn(rows, width), self.drawn(out, width), self.drawn(rows, out)
            for _ in range(number):
                x @ weight.t(), grad @ weight, grad.t() @ x
        for length in batch.cu_seqlens.diff().tolist():
            self.attend(dims.layers, (1, dims.heads, length, dims.head_dim), is_causal=True)
        if num_tiles:
            width = dims.tower_hidden // self.tower_heads
            self.attend(dims.tower_layers, (num_tiles, self.tower_heads, dims.patches, width), is_causal=False)

    def attend(self, layers: int, shape: tuple[int, ...], is_causal: bool) -> None:
        inputs = [self.drawn(*shape).detach().requires_grad_() for _ in range(3)]
        for _ in range(layers):
            out = scaled_dot_product_attention(*inputs, is_causal=is_causal)
            torch.autograd.grad(out, inputs, self.drawn(*shape))


def main() -> None:
    told = settings()
    turns = Turns()
    with StopSignal() as stop, start_ranks() as ranks:
        bench = Bench(load(told["recipe"]), ranks, stop)
        dtype = DTYPES[told["precision"]]
        limit = Limit(bench, torch.float32 if lacks_bf16(torch.empty(0, dtype=dtype)) else dtype)
        items = list(bench.data.step_batches(0, told["steps"]))
        turns.wait()
        for item in endless(items):
            for batch in item.batches:
                limit.run(batch)
            turns.done(0.0, sum(len(batch.input_ids) for batch in item.batches))


if __name__ == "__main__":
    main()
