"""Four stages of one process, one after the other, at each level named; prints what the process holds after each.

usage: python memory_worker.py LEVEL ...
"""

import ctypes
import json
import sys
from pathlib import Path

import torch
from engine_worker import Rows, make_groups, make_stage

from llava_train.ranks.process_group import Ranks, start_ranks
from llava_train.train.engine.engine import Engine

WIDTH = 1500  # of two layers: 9 MB of weights each, and 27 MB more of each in the engine


class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: Rows) -> torch.Tensor:
        return self.second(self.first(rows.x)).float().square().sum()


def stage(level: int, ranks: Ranks) -> None:
    module = Wide()
    engine = Engine(module, make_groups(module), make_stage(level, False, "fp32"), ranks)
    engine.forward_backward(Rows(torch.randn(2, 8)), 2, True)
    engine.step()
    engine.close()


def resident() -> int:
    """Bytes of this process in memory, less what the allocator keeps for later."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    with start_ranks() as ranks:
        for level in map(int, sys.argv[1:]):
            held = []
            for _ in range(4):
                stage(level, ranks)
                held.append(resident())
            print("HELD", json.dumps(held), flush=True)
