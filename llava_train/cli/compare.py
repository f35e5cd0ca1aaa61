"""`compare`: evaluations of the same questions side by side, such as before and after a training."""

from __future__ import annotations

from pathlib import Path

from llava_train.config.load import load_verb
from llava_train.config.schema import CompareConfig
from llava_train.shared.errors import ConfigError


def run(argv: list[str]) -> int:
    """Prints a table. Raises ConfigError."""
    config = load_verb(CompareConfig, argv)
    from llava_train.evaluate.comparison import compare, comparison_table, read_scores
    from llava_train.shared.console import console

    before = read_scores(Path(config.before))
    changes = {}
    for folder in config.after:
        try:
            changes[Path(folder).name] = compare(before, read_scores(Path(folder)))
        except ValueError as error:
            raise ConfigError.one("after", f"{folder}: {error}", "evaluate both on the same data.file") from error
    console().print(comparison_table(Path(config.before).name, before, changes))
    return 0
