"""What a path on disk holds and which files it is made of, by names alone: no record is read.

A new format is a kind here and a reader in `llava_train/records/readers/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from llava_train.shared.json_files import read_json

FileFormat = Literal["json", "jsonl", "table", "parquet", "arrow", "tar", "pictures"]
TABLE_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".json", ".jsonl")
FORMAT_OF_SUFFIX: dict[str, FileFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    **dict.fromkeys(TABLE_SUFFIXES, "table"),
    ".parquet": "parquet",
    ".tar": "tar",
}
RECORD_SUFFIXES = tuple(FORMAT_OF_SUFFIX)
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")
COUNT_LIMIT = 64 * 2**20  # bytes; a larger file is not opened to count its records
UNPACK = "is compressed: unpack it once (gunzip, unzip, zstd -d); what lies in it is then read in its place"
BESIDE_JSONL = (".jsonl", ".json", ".md", ".txt", "")  # suffixes in a folder of JSONL
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # files in a folder that `datasets` saved
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.(?:parquet|jsonl)")  # train-00000-of-00004.parquet
_WHOLE_SPLIT = re.compile(r"(train|test|validation|valid|val|dev)\.(?:parquet|jsonl)")
_PART = re.compile(r"(.+\.(?:csv|tsv))@(.+)", re.IGNORECASE)
_FOLDER_PART = re.compile(r"(.*[^/@])@([^/@.]+)")


def split_of(file: str | Path) -> tuple[Path, str]:
    """The file or folder, and the split that is named behind it: `q.csv@test` -> q.csv, test. Empty where none is."""
    found = _PART.fullmatch(str(file)) or (None if Path(file).exists() else _FOLDER_PART.fullmatch(str(file)))
    return (Path(found[1]), found[2]) if found else (Path(file), "")


def format_of(path: Path, split: str = "") -> FileFormat:
    """Raises ValueError that says what is allowed where the kind is not known, or has no splits and one is named."""
    kind = _format_of_folder(path) if path.is_dir() else _format_of_file(path)
    if split and kind != "table" and not (path.is_dir() and kind in ("parquet", "arrow", "jsonl")):
        meant = f"; name the folder instead: {path / split}" if (path / split).is_dir() else ""
        raise ValueError(f"has no splits, so none called {split}{meant}")
    return kind


def _format_of_file(path: Path) -> FileFormat:
    if kind := FORMAT_OF_SUFFIX.get(path.suffix.lower()):
        return kind
    if path.suffix.lower() in COMPRESSED:
        raise ValueError(UNPACK)
    raise ValueError(f"is no record file; allowed: {' '.join(RECORD_SUFFIXES)}, or a folder")


def _format_of_folder(path: Path) -> FileFormat:
    if (path / SAVED_SPLITS).is_file() or (path / SAVED).is_file():
        return "arrow"
    if _parquet_files(path):
        return "parquet"
    if _jsonl_files(path):
        return "jsonl"
    return "tar" if any(path.glob("*.tar")) or _packed(path) else "pictures"


def shards(path: Path, split: str) -> list[Path]:
    """The files of a Parquet, Arrow, tar or JSONL source, in order. Raises OSError or ValueError.

    Of a folder with several splits, one must be named; shards that are numbered must all be there.
    """
    if not path.is_dir():
        return [path]
    if (kind := format_of(path)) == "arrow":
        return _saved_files(path, split)
    if kind == "jsonl":
        return _of_split(path, split, _jsonl_files(path))
    parquet, tar = _parquet_files(path), sorted(path.glob("*.tar"))
    if packed := _packed(path):
        raise ValueError(f"{packed} {UNPACK}")
    if parquet and tar:
        raise ValueError(f"holds {parquet[0].name} and {tar[0].name}: keep one format in a folder, or name a file")
    return _of_split(path, split, parquet) if kind == "parquet" else tar


def _packed(folder: Path) -> str:
    return min((file.name for pattern in ("*.tar.*", "*.tgz") for file in folder.glob(pattern)), default="")


def _parquet_files(folder: Path) -> list[Path]:
    """Not those that img2dataset writes beside each tar, with the metadata that lie in it as well."""
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    return [file for file in files if not file.with_name(f"{file.stem}_stats.json").exists()]


def _jsonl_files(folder: Path) -> list[Path]:
    """None where the folder holds more than them and notes: then it is of another kind."""
    there = [file for file in folder.iterdir() if not file.name.startswith(".")]
    if any(file.suffix.lower() not in BESIDE_JSONL or file.is_dir() for file in there):
        return []
    return sorted(file for file in there if file.suffix.lower() == ".jsonl")


def _of_split(path: Path, split: str, files: list[Path]) -> list[Path]:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        found = _SHARD.fullmatch(file.name) or _WHOLE_SPLIT.fullmatch(file.name)
        by_split.setdefault(found[1] if found else "", []).append(file)
    name = _pick(path, split, by_split)
    if numbered := [found for file in by_split[name] if (found := _SHARD.fullmatch(file.name))]:
        total = int(numbered[0][3])
        if missing := sorted(set(range(total)) - {int(found[2]) for found in numbered}):
            raise ValueError(f"lacks {len(missing)} of {total} shards of {name}, first {missing[0]:05}: fetch them")
    return by_split[name]


def _saved_files(path: Path, split: str) -> list[Path]:
    if (path / SAVED_SPLITS).is_file():
        path = path / _pick(path, split, read_json(path / SAVED_SPLITS)["splits"])
        split = ""
    state = read_json(path / SAVED)
    if split and split != state["_split"]:
        raise ValueError(f"is split {state['_split'] or 'without name'}, not {split}")
    return [path / entry["filename"] for entry in state["_data_files"]]


def _pick(path: Path, split: str, splits: Iterable[str]) -> str:
    names = list(splits)
    told = f"holds splits {', '.join(name or 'without name' for name in names)}"
    if split and split not in names:
        raise ValueError(f"{told}, none called {split}")
    if not split and len(names) > 1:
        raise ValueError(f"{told}: name the one to read, as {path.name}@{names[0] or names[1]}")
    return split or names[0]
