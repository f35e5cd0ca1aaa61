"""Starts the last stage of the tiny recipe per line of overrides, its weights read into shards and read whole.

usage: [torchrun ...] unread_worker.py 'run.dir=A ...' ...; prints how many parameters were read into shards
"""

import shlex
import sys
from types import SimpleNamespace

import torch
from run_worker import RECIPE

from llava_train.config.load import load
from llava_train.model.loading.lazy_weights import load_unread, unread
from llava_train.model.loading.strict_load import load_strictly
from llava_train.ranks.process_group import start_ranks
from llava_train.train import build
from llava_train.train.run.stages import pending_stages

DATA = SimpleNamespace(steps_per_epoch=1, num_samples_by_source={}, refused=[], records={}, held_out=None)


def start(config, way, ranks) -> tuple[int, list]:
    """Parameters that were left unread, and what this rank holds once the engine stands."""
    build.load_unread = way
    [stage] = pending_stages(config, ranks)
    model = build.build_model(config, stage, ranks)
    num_unread = len(unread(model.model.parameters()))
    engine = build.build_trainer(config, stage, model, DATA, ranks, None).engine
    parts = [*engine.trained_slices(), *engine.frozen_slices()]
    assert not unread(engine.module.parameters())
    return num_unread, [(part.name, part.start, part.of(part.flat).clone()) for part in parts]


if __name__ == "__main__":
    with start_ranks() as ranks:
        for line in sys.argv[1:]:
            config = load([*RECIPE, *shlex.split(line)])
            (num_unread, ours), (none, whole) = (start(config, way, ranks) for way in (load_unread, load_strictly))
            assert none == 0
            assert [place for *place, _ in ours] == [place for *place, _ in whole]
            assert all(a.dtype == b.dtype and torch.equal(a, b) for (*_, a), (*_, b) in zip(ours, whole, strict=True))
            if ranks.is_first:
                print("UNREAD", num_unread, flush=True)
