"""Five steps of a toy module through `Engine`, its micro-batches dealt over the ranks; rank 0 prints what came out.

usage: torchrun ... engine_worker.py LEVEL,OFFLOAD,PRECISION ...
"""

import gc
import json
import math
import sys
from dataclasses import dataclass

import torch

from llava_train.config.schema import (
    CheckpointConfig,
    ImageConfig,
    LearningRates,
    OptimizerConfig,
    PackConfig,
    ScheduleConfig,
    StageConfig,
    VideoConfig,
    ZeroConfig,
)
from llava_train.ranks.process_group import start_ranks
from llava_train.train.engine.engine import Engine

RATES = {"first": 1e-3, "second": 1e-2}
MICRO_BATCHES = (4, 2, 8, 4, 2)  # of each step, over all ranks


@dataclass
class Rows:
    x: torch.Tensor
    weight: float = 1.0
    steep: bool = False  # adds a term of value 0 whose gradient is NaN

    def to(self, device):
        return Rows(self.x.to(device), self.weight, self.steep)


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, rows: Rows) -> torch.Tensor:
        hidden = torch.relu(self.first(rows.x.to(self.first.weight)))
        loss = self.second(hidden).float().square().sum() * rows.weight
        return loss + (hidden.float().sum() * 0).sqrt() if rows.steep else loss


def make_steps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, generator=generator) for n in MICRO_BATCHES]


def make_stage(level: int, offload: bool, precision: str) -> StageConfig:
    return StageConfig(
        "", LearningRates(1.0, 1.0, 1.0), 1, 0, 4, ScheduleConfig("constant", 0.0),
        OptimizerConfig(0.1, 0.9, 0.98, 1e-8, 1.0), "qwen", "clean", "front", 10, ImageConfig("square", [], 1),
        VideoConfig(1.0, 1), PackConfig(1, 1), precision, ZeroConfig(level, offload, offload and level == 3), False,
        CheckpointConfig(0, 1, 0, "none", False, 0),
    )  # fmt: skip


def make_groups(toy: Toy) -> list[dict]:
    return [
        {"name": n, "params": list(getattr(toy, n).parameters()), "lr": r, "weight_decay": 0.1}
        for n, r in RATES.items()
    ]


def train(level: int, offload: bool, precision: str, ranks) -> dict:
    toy = Toy()
    engine = Engine(toy, make_groups(toy), make_stage(level, offload, precision), ranks)
    parts = {name: name.split(".")[0] for name, _ in toy.named_parameters()}
    losses, norms, part_norms = [], [], {}
    for i, step in enumerate(make_steps()):
        engine.set_learning_rates(1 - i / 10)
        mine = step[ranks.rank :: ranks.world_size]
        sums = [engine.forward_backward(Rows(x), 3 * len(step), j == len(mine) - 1) for j, x in enumerate(mine)]
        part_norms = part_norms or engine.gradient_norms(parts)
        norms.append(engine.step())
        losses.append(ranks.sum(sum(map(float, sums)))[0] / (3 * len(step)))
    weights = {name: values.tolist() for name, values in whole_weights(engine).items()}
    bad = [not_finite(engine, ranks, "steep"), not_finite(engine, ranks, "huge")]
    engine.close()
    return {"losses": losses, "norms": norms, "part_norms": part_norms, "weights": weights, "bad": bad}


def not_finite(engine: Engine, ranks, kind: str) -> dict:
    """A step of two micro-batches, of which the first on the last rank has a finite loss and a gradient that is not:
    NaN where `steep`, infinite where `huge`. What it returned, and whether the engine's whole state stayed."""
    before = state_of(engine)
    x = torch.ones(1, 8)
    last = ranks.rank == ranks.world_size - 1
    bad = Rows(x, steep=True) if kind == "steep" else Rows(x, weight=1e36)
    sums = [
        engine.forward_backward(bad if last else Rows(x), 1e-3, False),
        engine.forward_backward(Rows(x), 1e-3, True),
    ]
    norm = engine.step()
    same = [bool(torch.equal(old, new)) for old, new in zip(before, state_of(engine), strict=True)]
    finite = all(bool(loss.isfinite()) for loss in sums)
    return {"is_finite": math.isfinite(norm), "loss_is_finite": finite, "is_unchanged": all(same) and len(same) > 0}


def state_of(engine: Engine) -> list[torch.Tensor]:
    """Copies of this rank's masters, moments and AdamW's counts, and of the weights that the forward reads."""
    parts = engine.trained_slices()
    masters = [part.of(part.flat).clone() for part in parts]
    moments = [value.clone() for part in parts for value in engine.optimizer_state(part).values()]
    with engine.evaluating() as forward:
        return [*masters, *moments, forward(Rows(torch.ones(1, 8))).clone()]


def kept_bytes() -> int:
    """Of all tensors that this process holds, each storage once."""
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def whole_weights(engine: Engine) -> dict[str, torch.Tensor]:
    """Flat fp32 master weights, put together from all ranks' slices."""
    mine = [(part.name, part.start, part.of(part.flat).clone()) for part in engine.trained_slices() if part.written]
    pieces = sorted(piece for of_rank in engine.ranks.gather(mine) for piece in of_rank)
    names = dict.fromkeys(name for name, _, _ in pieces)
    return {name: torch.cat([values for n, _, values in pieces if n == name]) for name in names}


if __name__ == "__main__":
    with start_ranks() as ranks:
        for words in sys.argv[1:]:
            level, offload, precision = words.split(",")
            before = kept_bytes()
            result = train(int(level), offload == "1", precision, ranks)
            result["left"] = kept_bytes() - before
            if ranks.is_first:
                print("RESULT", json.dumps(result), flush=True)
