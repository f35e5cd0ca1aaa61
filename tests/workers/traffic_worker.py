"""Two steps of a small module under ZeRO on some ranks; rank 0 prints the bytes of each collective of the second.

usage: torchrun ... traffic_worker.py LEVEL,PRECISION,LIVE ...; LIVE: weights that ZeRO 3 keeps gathered at the most
"""

import json
import sys
from collections import Counter

import torch
import torch.distributed as dist
from engine_worker import Rows, make_stage

from llava_train.ranks.process_group import start_ranks
from llava_train.train.engine import engine as engines

WIDTH, LAYERS, MICRO_BATCHES = 400, 4, 3  # 160,000 weights a layer: more than ZeRO 3 leaves whole
COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter", "all_gather_into_tensor")
COLLECTIVES += ("reduce_scatter_tensor", "all_to_all_single")
SENT: Counter = Counter()


class Toy(torch.nn.Module):
    """The first layer is frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self.layers[0].requires_grad_(False)

    def forward(self, rows: Rows) -> torch.Tensor:
        hidden = rows.x.to(self.layers[0].weight.dtype)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return hidden.float().square().sum()


def counted(name: str) -> None:
    inner = getattr(dist, name)

    def call(*words, **named):
        tensors = [value for value in (*words, *named.values()) if isinstance(value, torch.Tensor)]
        lists = [value for value in (*words, *named.values()) if isinstance(value, list)]
        whole = max([tensor.nbytes for tensor in tensors] + [sum(tensor.nbytes for tensor in held) for held in lists])
        if whole > 1000:  # weights or gradients, not counts
            SENT[name] += whole
        return inner(*words, **named)

    setattr(dist, name, call)


def train(level: int, precision: str, live: int, ranks) -> dict:
    config = engines.deepspeed_config

    def with_live(stage, world_size):
        settings = config(stage, world_size)
        if level == 3:
            settings["zero_optimization"] |= {"stage3_max_live_parameters": live, "stage3_max_reuse_distance": live}
        return settings

    engines.deepspeed_config = with_live
    toy = Toy()
    groups = [{"name": "all", "params": [p for p in toy.parameters() if p.requires_grad], "lr": 1e-3}]
    engine = engines.Engine(toy, groups, make_stage(level, False, precision), ranks)
    engines.deepspeed_config = config
    for _ in range(2):
        SENT.clear()
        for i in range(MICRO_BATCHES):
            engine.forward_backward(Rows(torch.randn(3, WIDTH)), 1.0, i == MICRO_BATCHES - 1)
        engine.step()
    return dict(SENT)


if __name__ == "__main__":
    for name in COLLECTIVES:
        counted(name)
    with start_ranks() as ranks:
        for words in sys.argv[1:]:
            level, precision, live = words.split(",")
            sent = train(int(level), precision, int(live), ranks)
            if ranks.is_first:
                print("SENT", json.dumps(sent), flush=True)
