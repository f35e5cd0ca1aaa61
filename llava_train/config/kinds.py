"""What a path on disk holds, by its name and the names in it: no record is read.

A new format is a kind here and a reader in `llava_train/data/sources/`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Kind = Literal["json", "jsonl", "table", "parquet", "arrow", "tar", "pictures"]
TABLE_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".json", ".jsonl")
FILE_KINDS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    **dict.fromkeys(TABLE_SUFFIXES, "table"),
    ".parquet": "parquet",
    ".tar": "tar",
}
RECORD_SUFFIXES = tuple(FILE_KINDS)
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # files in folders that `datasets` saved
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")
SPLIT_OF_SHARD = re.compile(r"(.+?)(?:-\d+-of-\d+(?:-[0-9a-f]+)?)?\.parquet")  # the layout of the hub
_PART = re.compile(r"(.+\.(?:csv|tsv))@(.+)", re.IGNORECASE)
_FOLDER_PART = re.compile(r"(.*[^/@])@([^/@]+)")


def split_of(file: str | Path) -> tuple[Path, str]:
    """The file or folder, and the split that is named behind it: `q.csv@test` -> q.csv, test. Empty where none is."""
    if found := _PART.fullmatch(str(file)):
        return Path(found[1]), found[2]
    found = _FOLDER_PART.fullmatch(str(file))
    if found and not Path(found[2]).suffix and not Path(file).exists():
        return Path(found[1]), found[2]
    return Path(file), ""


def kind_of(path: Path) -> Kind:
    """Raises ValueError that says what is allowed where the kind is not known."""
    if path.is_dir():
        return _kind_of_folder(path)
    if kind := FILE_KINDS.get(path.suffix.lower()):
        return kind
    if path.suffix.lower() in COMPRESSED:
        raise ValueError("is compressed; unpack it once (gunzip, unzip): what is in it is read by its place")
    raise ValueError(f"is no record file; allowed: {' '.join(RECORD_SUFFIXES)}, or a folder")


def _kind_of_folder(path: Path) -> Kind:
    if (path / SAVED_SPLITS).is_file() or (path / SAVED).is_file():
        return "arrow"
    if parquet_files(path):
        return "parquet"
    return "tar" if any(path.glob("*.tar")) else "pictures"


def parquet_files(folder: Path) -> list[Path]:
    """Shards of a folder, or of its folder `data`, in the order of their names."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def pick_split(path: Path, split: str, splits: Sequence[str]) -> str:
    """The split to be read of those there are. Raises ValueError unless it is one of them, or the only one."""
    names = list(dict.fromkeys(splits))
    if split in names:
        return split
    if not split and len(names) == 1:
        return names[0]
    told = f"holds splits {', '.join(names)}"
    if split:
        raise ValueError(f"{told}, none called {split}")
    raise ValueError(f"{told}: name the one to read, as {path.name}@{names[0]}")
