"""This trainer: the recipe's stage, its data, engine and step, with the steps decoded before the first turn."""

from __future__ import annotations

from turns import Turns, endless, settings

from llava_train.config.load import load
from llava_train.ranks.process_group import start_ranks
from llava_train.ranks.signals import StopSignal
from llava_train.train.bench import Bench


def main() -> None:
    told = settings()
    turns = Turns()
    with StopSignal() as stop, start_ranks() as ranks:
        bench = Bench(load(told["recipe"]), ranks, stop)
        items = endless(list(bench.data.step_batches(0, told["steps"])))
        turns.wait()
        while True:
            counts, result = bench.step(next(items))
            turns.done(result.loss, counts.num_tokens)


if __name__ == "__main__":
    main()
