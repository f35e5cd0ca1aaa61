"""Runs the last stage of the tiny recipe once per line of overrides given, all in one process group.

usage: [torchrun ...] run_worker.py 'run.dir=A stages.onevision.zero.level=3' 'run.dir=B ...'
"""

import shlex
import sys

from llava_train.config.load import load
from llava_train.ranks.process_group import start_ranks
from llava_train.ranks.signals import StopSignal
from llava_train.train.build import build_data, build_model, build_trainer
from llava_train.train.run.stages import pending_stages

RECIPE = ["+recipe=tiny", "~stages.projector", "data.num_workers=0"]

if __name__ == "__main__":
    with StopSignal() as stop, start_ranks() as ranks:
        for line in sys.argv[1:]:
            config = load([*RECIPE, *shlex.split(line)])
            for stage in pending_stages(config, ranks):
                model = build_model(config, stage, ranks)
                data = build_data(config, stage, model, ranks)
                build_trainer(config, stage, model, data, ranks, stop).run()
