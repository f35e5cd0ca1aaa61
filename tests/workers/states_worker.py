"""Bytes that a rank holds in the backward of its second step, by DeepSpeed's own rules; rank 0 prints them by weight.

usage: torchrun ... states_worker.py LEVEL,OFFLOAD_OPTIMIZER,OFFLOAD_PARAMETERS ...
"""

import gc
import json
import sys
from dataclasses import replace

import torch
from engine_worker import Rows, kept_bytes, make_groups, make_stage

from llava_train.config.schema import ZeroConfig
from llava_train.ranks.process_group import start_ranks
from llava_train.train.engine.engine import Engine

SIZES = 1024, 2048
WEIGHTS = 2 * SIZES[0] * SIZES[1]


class Two(torch.nn.Module):
    """Two matrices of half of the weights each, in bf16."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(*SIZES, bias=False, dtype=torch.bfloat16)
        self.second = torch.nn.Linear(*reversed(SIZES), bias=False, dtype=torch.bfloat16)

    def forward(self, rows: Rows) -> torch.Tensor:
        return self.second(self.first(rows.x)).float().square().sum()


def held(zero: ZeroConfig, ranks) -> float:
    gc.collect()
    before = kept_bytes()
    module = Two()
    stage = replace(make_stage(zero.level, False, "bf16"), zero=zero)
    engine = Engine(module, make_groups(module), stage, ranks)
    for _ in range(2):
        engine.forward_backward(Rows(torch.ones(1, SIZES[0], dtype=torch.bfloat16)), 1, True)
        gc.collect()
        bytes_held = kept_bytes() - before
        engine.step()
    engine.close()
    return bytes_held / WEIGHTS


if __name__ == "__main__":
    with start_ranks() as ranks:
        for words in sys.argv[1:]:
            level, optimizer, parameters = map(int, words.split(","))
            by_weight = held(ZeroConfig(level, bool(optimizer), bool(parameters)), ranks)
            if ranks.is_first:
                print("RESULT", json.dumps([words, by_weight]), flush=True)
