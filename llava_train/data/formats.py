"""LLaVA JSON and JSONL, tables and folders: records as they stand in a file become `Sample`s.

A record: `id` (optional), `conversations` [{from, value}] or [{role, content}], or `messages` with typed parts (see
`messages.py`), `image` and `video` each a path or a list of paths, both optional. A first `system` turn replaces the
default; a leading answer to nothing is dropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_train.config.errors import DataError
from llava_train.config.plain import BadRecord, read_plain
from llava_train.data.messages import from_messages
from llava_train.data.sample import Role, Sample, Turn

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
}


def read_records(path: Path, source: str) -> list[Any]:
    """All records of a file: of .jsonl one per line that is not blank, of tables and folders as `config.plain` reads
    them, else a JSON list. A bad one is kept as a `BadRecord`, so that positions stay. Raises DataError where the file
    as a whole cannot be read."""
    try:
        if (plain := read_plain(path)) is not None:
            return plain
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [_parse_line(line) for line in text.split("\n") if line.strip()]
        records = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(source, "-", "unreadable file", f"{path}: {error}") from error
    if not isinstance(records, list):
        raise DataError(source, "-", "unreadable file", f"{path} holds no list of records")
    return records


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRecord(f"no JSON: {error}")


def to_sample(record: Any, source: str, position: int, media_root: Path) -> Sample:
    """One record as a Sample. Raises DataError with reason `bad record`."""
    identity = record_id(record, position)
    name = str(position) if identity == str(position) else f"{position} (id {identity})"
    try:
        if isinstance(record, BadRecord):
            raise record
        if not isinstance(record, dict):
            raise BadRecord(f"is a {type(record).__name__}, not a mapping")
        record = from_messages(record)
        for key in ("images", "videos"):
            if key in record:
                raise BadRecord(f"key {key!r}: write {key[:-1]!r}")
        return Sample(
            id=identity,
            source=source,
            turns=_turns(record.get("conversations")),
            images=_paths(record, "image", media_root),
            videos=_paths(record, "video", media_root),
            record=name,
        )
    except BadRecord as error:
        raise DataError(source, name, "bad record", str(error)) from error


def record_id(record: Any, position: int) -> str:
    """The record's own id, else its position."""
    identity = record.get("id") if isinstance(record, dict) else None
    return str(position if identity is None else identity)


def _turns(conversation: Any) -> list[Turn]:
    if not isinstance(conversation, list) or not conversation:
        raise BadRecord("no conversations")
    turns = [_turn(entry) for entry in conversation]
    start = 1 if turns[0].role == "system" else 0
    if len(turns) > start and turns[start].role == "gpt":
        del turns[start]
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadRecord("a system turn may only come first")
    if len(turns) == start:
        raise BadRecord("no human turn")
    return turns


def _turn(entry: Any) -> Turn:
    if not isinstance(entry, dict):
        raise BadRecord("a turn is not a mapping")
    role = entry.get("from", entry.get("role"))
    text = entry.get("value", entry.get("content"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRecord(f"role {role!r} is unknown; known: {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise BadRecord(f"the text of a {role} turn is a {type(text).__name__}")
    return Turn(ROLES[role], text)


def _paths(record: dict, key: str, media_root: Path) -> list[Path]:
    value = record.get(key)
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and entry for entry in values):
        raise BadRecord(f"{key!r} is neither a path nor a list of paths")
    return [media_root / entry for entry in values]
