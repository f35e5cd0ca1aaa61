"""The files of a checkpoint folder, one at a time: JSON objects, headers of safetensors, or what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from llava_train.shared.errors import ConfigError, Fault
from llava_train.shared.json_files import read_json

LFS_MARK = b"version https://git-lfs.github.com/spec/v1"
MAX_HEADER = 100_000_000  # bytes; safetensors itself reads no longer one


class Stored(NamedTuple):
    """dtype: as safetensors writes it, for instance BF16."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_header(key: str, path: Path) -> dict[str, Stored]:
    """What a safetensors file holds, by its header; the data behind it is measured, not read. Raises ConfigError."""
    if fault := pointer_fault(key, path):
        raise ConfigError([fault])
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER else b""
    if size < 8 or (header[:1] == b"{" and len(header) < length):
        raise ConfigError.one(key, f"{path} is cut off: it has {size:,} bytes", "download or copy it again")
    try:
        content = json.loads(header)
        content.pop("__metadata__", None)
        found = {name: Stored(entry["dtype"], tuple(entry["shape"]), path) for name, entry in content.items()}
        end = _end_of(sorted(tuple(entry["data_offsets"]) for entry in content.values()))
        if not all(isinstance(stored.dtype, str) for stored in found.values()):
            raise ValueError("a type is no text")
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise ConfigError.one(key, f"{path} is no safetensors file", "download or copy it again") from error
    due = 8 + length + end
    if size != due:
        what = "is cut off" if size < due else "has something behind its end"
        problem = f"{path} {what}: it has {size:,} bytes instead of {due:,}"
        raise ConfigError.one(key, problem, "download or copy it again")
    return found


def _end_of(spans: list[tuple[int, int]]) -> int:
    """Bytes of the data: spans (begin, end) of the tensors, in order. Raises ValueError where they leave a gap or
    overlap, which safetensors does not read either."""
    end = 0
    for begin, next_end in spans:
        if begin != end or next_end < begin:
            raise ValueError(f"a tensor begins at {begin}, not at {end}")
        end = next_end
    return end


def pointer_fault(key: str, path: Path) -> Fault | None:
    """Where a file is a Git LFS pointer in place of what it should hold."""
    with path.open("rb") as file:
        if not file.read(len(LFS_MARK)).startswith(LFS_MARK):
            return None
    problem = f"{path} is a Git LFS pointer, not the file itself"
    return Fault(key, problem, f"run `git lfs pull` in {path.parent}, or download it from the hub")


def json_fault(key: str, path: Path) -> Fault | None:
    """Where a file is there and holds no JSON object."""
    if path.is_file():
        try:
            read_object(key, path)
        except ConfigError as error:
            return error.faults[0]
    return None


def read_object(key: str, path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ConfigError."""
    try:
        fault = pointer_fault(key, path)
        content = None if fault else read_json(path)
    except OSError as error:
        raise ConfigError.one(
            key, f"{path} cannot be read: {error.strerror}", "give a whole checkpoint folder"
        ) from error
    except ValueError as error:
        problem = f"{path} is no JSON: {str(error).splitlines()[0]}"
        raise ConfigError.one(key, problem, "download or copy it again") from error
    if fault:
        raise ConfigError([fault])
    if not isinstance(content, dict):
        raise ConfigError.one(key, f"{path} holds no JSON object", "download or copy it again")
    return content


def object_or_empty(value: Any) -> dict[str, Any]:
    """A value of JSON where it is an object; else empty."""
    return value if isinstance(value, dict) else {}


def read_or_empty(path: Path) -> dict[str, Any]:
    """As `read_object`; empty where there is none, or it is not sound, which is a fault elsewhere."""
    try:
        return read_object("", path)
    except ConfigError:
        return {}
