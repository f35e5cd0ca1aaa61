"""`status`: how far a run is, in words and as one line of JSON."""

from __future__ import annotations

from pathlib import Path

from llava_train.config.load import load_verb
from llava_train.config.schema import StatusConfig
from llava_train.shared.json_files import to_json
from llava_train.train.run.status import status, status_text


def run(argv: list[str]) -> int:
    """Raises ConfigError, RunError."""
    told = status(Path(load_verb(StatusConfig, argv).run.dir))
    print(*status_text(told), to_json(told), sep="\n")
    return 0
