"""Runs the last stage of the tiny recipe; rank 0 prints in how many forwards some ranks had images and others none.

usage: [torchrun ...] mixture_worker.py KEY=VALUE ...
"""

import sys

from run_worker import RECIPE

from llava_train.config.load import load
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.ranks.process_group import start_ranks
from llava_train.ranks.signals import StopSignal
from llava_train.train.build import build_data, build_model, build_trainer
from llava_train.train.run.stages import pending_stages

if __name__ == "__main__":
    with_images: list[bool] = []
    forward = PackedForward.forward

    def noted(self, batch):
        with_images.append(bool(batch.visuals))
        return forward(self, batch)

    PackedForward.forward = noted
    with StopSignal() as stop, start_ranks() as ranks:
        config = load([*RECIPE, *sys.argv[1:]])
        [stage] = pending_stages(config, ranks)
        model = build_model(config, stage, ranks)
        data = build_data(config, stage, model, ranks)
        build_trainer(config, stage, model, data, ranks, stop).run()
        at_once = list(zip(*ranks.gather(with_images), strict=True))
        if ranks.is_first:
            print("MIXED", sum(len(set(of_ranks)) > 1 for of_ranks in at_once), flush=True)
