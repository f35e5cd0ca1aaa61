"""A run's folder as its files stand, read and written without a heavy library: checkpoints, logs, ends of stages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llava_train.config.json_files import to_json

PARTIAL = ".partial"
FINISHED = "finished.json"
METRICS = "metrics.jsonl"


def write_whole(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees the old text or the new, never a part."""
    beside = path.with_name(path.name + PARTIAL)
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """As `write_whole`."""
    write_whole(path, to_json(content, indent=1, ensure_ascii=False) + "\n")


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def whole_checkpoints(stage_dir: Path) -> list[Path]:
    """Step folders that were written to their end, newest first."""
    return sorted((f for f in stage_dir.glob("step-" + "[0-9]" * 8) if f.is_dir()), reverse=True)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines that a stage has logged; one that is being written is left out."""
    return [json.loads(line) for line in whole_lines(folder / METRICS)]


def whole_lines(path: Path) -> list[bytes]:
    """Of a JSONL file, those that end; none where it is absent. Of bytes: a text of JSON may hold U+2028 and others by
    which `str.splitlines` ends a line."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]
