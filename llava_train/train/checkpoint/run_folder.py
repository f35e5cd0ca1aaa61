"""A run's folder as its files stand, read and written without a heavy library: checkpoints, logs, ends of stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_train.shared.whole_files import whole_lines

FINISHED = "finished.json"
METRICS = "metrics.jsonl"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def whole_checkpoints(stage_dir: Path) -> list[Path]:
    """Step folders that were written to their end, newest first."""
    return sorted((f for f in stage_dir.glob("step-" + "[0-9]" * 8) if f.is_dir()), reverse=True)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines that a stage has logged; one that is being written is left out."""
    return [json.loads(line) for line in whole_lines(folder / METRICS)]
