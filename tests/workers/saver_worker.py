"""The toy steps of `engine_worker`, cut in two by a checkpoint; rank 0 prints the losses of what it ran.

usage: torchrun ... saver_worker.py TASK ...   TASK: first|second|whole:FOLDER:LEVEL,OFFLOAD,PRECISION[:background]
"""

import json
import sys
from pathlib import Path

from engine_worker import MICRO_BATCHES, Rows, Toy, make_groups, make_stage, make_steps

from llava_train.config.schema import CheckpointConfig
from llava_train.model.loading.load_model import DTYPES
from llava_train.ranks.process_group import start_ranks
from llava_train.train.checkpoint import on_disk
from llava_train.train.checkpoint.state import TrainState
from llava_train.train.checkpoint.writer import Saver
from llava_train.train.engine.engine import Engine

CUT = 2  # steps before the checkpoint
PARTS = {"first": range(CUT), "second": range(CUT, len(MICRO_BATCHES)), "whole": range(len(MICRO_BATCHES))}


def make_engine(words: str, ranks) -> Engine:
    level, offload, precision = words.split(",")
    stage = make_stage(int(level), offload == "1", precision)
    toy = Toy()
    toy.second.bias.requires_grad_(False)  # a frozen parameter
    toy.to(DTYPES[precision])
    groups = make_groups(toy)
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    return Engine(toy, groups, stage, ranks)


def run_steps(engine: Engine, ranks, which: range) -> list[float]:
    losses = []
    for i, step in enumerate(make_steps()):
        if i not in which:
            continue
        engine.set_learning_rates(1 - i / 10)
        mine = step[ranks.rank :: ranks.world_size]
        most = -(-len(step) // ranks.world_size)
        rows = [Rows(mine[j]) if j < len(mine) else Rows(step[0], weight=0.0) for j in range(most)]
        sums = [engine.forward_backward(row, 3 * len(step), j == most - 1) for j, row in enumerate(rows)]
        engine.step()
        losses.append(ranks.sum(sum(map(float, sums)))[0] / (3 * len(step)))
    return losses


def run(task: str, ranks) -> list[float]:
    part, folder, words, *background = task.split(":")
    stage_dir = Path(folder)
    engine = make_engine(words, ranks)
    saver = Saver(stage_dir, engine, CheckpointConfig(1, 2, 0, "none", bool(background), 0), ranks)
    if part == "second":
        newest, _ = on_disk.last_whole(stage_dir, ranks)
        assert on_disk.load_checkpoint(newest, engine).step == CUT
    losses = run_steps(engine, ranks, PARTS[part])
    if part == "first":
        if ranks.is_first:
            stage_dir.mkdir(parents=True)
        saver.write_base(lambda folder: (folder / "config.json").write_text("{}"), start=None)
        saver.save(TrainState(step=CUT), {}, {"loss": losses[-1]}, bool(background))
        if background:  # the copy is what is written, whatever happens to the weights meanwhile
            run_steps(engine, ranks, PARTS["second"])
            saver.poll()
            saver.finish()
    return losses


if __name__ == "__main__":
    with start_ranks() as ranks:
        for task in sys.argv[1:]:
            losses = run(task, ranks)
            if ranks.is_first:
                print("RESULT", json.dumps(losses), flush=True)
