"""`python -m llava_train +recipe=NAME`: every stage of the recipe that is not finished, then what came of it."""

from __future__ import annotations

from pathlib import Path

from llava_train.cli.check import load_checked
from llava_train.ranks.signals import StopSignal


def run(argv: list[str]) -> int:
    with StopSignal() as stop:
        config, _ = load_checked(argv)
        from llava_train.ranks import process_group
        from llava_train.train import build, preflight
        from llava_train.train.report import end_of_run, stage_scores
        from llava_train.train.run import lock, stages

        with process_group.start_ranks() as ranks, lock.alone(Path(config.run.dir), ranks):
            pending = stages.pending_stages(config, ranks)
            preflight.check(config, pending, ranks)
            for stage in pending:
                model = build.build_model(config, stage, ranks)
                data = build.build_data(config, stage, model, ranks)
                build.build_trainer(config, stage, model, data, ranks, stop).run()
            results = stage_scores.evaluate_stages(config, ranks)
            end_of_run.report(config, results, ranks)
    return 0
