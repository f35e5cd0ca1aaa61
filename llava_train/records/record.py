"""What every reader gives: a record as LLaVA's JSON has it, or why it is none; and what is not read, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMED = 5  # files and folders that a message names
Record = dict[str, Any]


class BadRecord(ValueError):
    """A record of the wrong form; the message says how."""


def files_passed_over(what: str, files: list[Path]) -> str:
    """In words; empty where there are none."""
    return f"{len(files):,} files {what}, such as {', '.join(map(str, files[:NAMED]))}" if files else ""


def columns_passed_over(names: list[str]) -> str:
    """In words; empty where there are none."""
    return f"columns {', '.join(name or '(without a name)' for name in names)}" if names else ""


DESCRIBE, NAME_IT = "Describe the {}.", "What is shown?"  # asked where a table or a folder has no questions
