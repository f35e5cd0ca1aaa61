"""Notes on samples that are odd and trained on all the same, for `preview` and the start of a stage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llava_train.data.samples.sample import Sample
from llava_train.records.image_files import sorted_frames

NOTES = (  # by number, as an index has them
    "",
    "<image> or <video> without a medium stays text",
    "files that are no pictures are passed over among the frames of a video",
    "an answer before the first question is left out",
)
NAMED = 5  # samples that a note names


def note_of(sample: Sample) -> int:
    """The number of its note, 0 for none. Raises OSError."""
    if sample.is_tagged_text:
        return 1
    folders = (file for file in sample.videos if isinstance(file, Path) and file.is_dir())
    if any(sorted_frames(folder)[1] for folder in folders):
        return 2
    return 3 if sample.lost_opening else 0


def note_line(note: int, count: int, names: Iterable[str]) -> str:
    """A line about `count` samples with this note, some of them named."""
    return f"{NOTES[note]} in {count:,} samples, such as {'; '.join(names)}"
