"""`evaluate`: a checkpoint's answers to held-out questions, scored, with the loss of the references."""

from __future__ import annotations

from llava_train.config.load import load_verb
from llava_train.config.rules.evaluate import evaluated_sources
from llava_train.config.schema import EvaluateConfig
from llava_train.model.start.start_faults import open_start


def run(argv: list[str]) -> int:
    """Prints the scores and where the rest lies. Raises ConfigError, DataError."""
    config = load_verb(EvaluateConfig, argv)
    open_start("model.init", config.model.init)  # an unsound one leaves no folder of answers behind
    from llava_train.evaluate import evaluation
    from llava_train.evaluate.questions import read_questions
    from llava_train.ranks.process_group import start_ranks

    questions = read_questions(evaluated_sources(config), config.limit, config.seed, config.score)
    with start_ranks() as ranks:
        evaluation.evaluate(config, questions, ranks)
    return 0
