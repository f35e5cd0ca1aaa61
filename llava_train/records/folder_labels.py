"""Whether folders are named by what their pictures show, or are a split or a place where pictures are kept.

Enters: pictures, relative to the folder that is read. Leaves: the names that would be wrong answers, and the folders
below that were meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "trainval", "holdout"}
PLACES = {
    *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "frame", "frames"),
    *("media", "data", "dataset", "datasets", "raw", "file", "files", "asset", "assets", "jpegimages", "jpg", "jpeg"),
    *("png", "mask", "masks", "annotation", "annotations", "label", "labels", "part", "set", "split", "batch", "shard"),
    *("fold", "unlabeled", "unlabelled", "unsorted"),
}


def is_no_label(name: str) -> bool:
    """Worked cases: `train2017`, `test_images`, `trainA`, `JPEGImages` -> true; `cat`, `image_of_cat`, `7`, `A` ->
    false."""
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])([A-Z])$", r"_\1", name).lower())
    known = [word in SPLITS or word in PLACES for word in words]
    return any(known) and all(found or len(word) == 1 for found, word in zip(known, words, strict=True))


def wrong_labels(pictures: Sequence[Path]) -> list[str]:
    """Names of folders, of the first level, that say nothing of what their pictures show.

    `train` alone among other names is the vehicle, unless it has folders of its own. One folder alone, with several
    folders in it, or in the only one that is in it, and no picture, is a place whatever its name.
    """
    inner: dict[str, list[Path]] = {}
    for picture in pictures:
        if len(picture.parts) > 1:
            inner.setdefault(picture.parts[0], []).append(Path(*picture.parts[1:]))
    found = [name for name in inner if is_no_label(name)]
    if found == ["train"] and len(inner) > 1 and all(len(picture.parts) == 1 for picture in inner["train"]):
        return []
    if not found and len(inner) == 1:
        [(name, below)] = inner.items()
        return [name] if all(map(_top, below)) and (len({*map(_top, below)}) > 1 or wrong_labels(below)) else []
    return found


def meant_folders(pictures: Sequence[Path]) -> list[Path]:
    """The folders below, in place of the one that is read, whose own folders may be named by what is shown."""
    found: list[Path] = []
    for name in wrong_labels(pictures):
        below = [
            Path(*picture.parts[1:]) for picture in pictures if len(picture.parts) > 2 and picture.parts[0] == name
        ]
        if below:
            found += [Path(name, inner) for inner in meant_folders(below)] or [Path(name)]
    return found


def _top(picture: Path) -> str:
    return picture.parts[0] if len(picture.parts) > 1 else ""
