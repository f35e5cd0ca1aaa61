"""Which media of a stage's sources are the same picture or film, looked for only where samples are held out.

Enters: the indexes of a stage. Leaves: `pictures.npz` in the folder of each, kept while its rows stay, for
`held_out.same_content`. A file is known by its resolved path, and by its bytes where another file, or a medium inside
of records, has as many of them and the same height and width; a medium inside of records by its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from rich.console import Console
from rich.progress import Progress

from llava_train.data.index.make_index import COLUMNS, PARALLEL_ABOVE, Reading, locked
from llava_train.data.index.source_index import PICTURES, REFUSED, Index
from llava_train.data.media.video import folder_frames
from llava_train.data.samples.held_out import Pictures, unhashed
from llava_train.records.media_file import MediaFile, PackedFile, open_medium
from llava_train.shared.whole_files import whole_file

BYTES = 2**20  # read at a time
BLOCK = 4096  # records that threads are given at a time
Entry = tuple[str, Index, Reading]  # a source's name, its index, how its records are read


def find_pictures(sources: Sequence[Entry], num_workers: int) -> None:
    """After it each index has the `pictures` of its rows; processes that ask at once make them once."""
    for name, index, reading in sources:
        with _alone(name, index):
            if not _has_pictures(index):
                _write(index, _looked_at(name, index, reading))
    for (name, index, reading), wanted in zip(sources, unhashed([s[1].pictures() for s in sources]), strict=True):
        if wanted.any():
            with _alone(name, index):
                pictures = index.pictures()
                _hash(name, index, reading, pictures, wanted & (pictures.digest == 0), num_workers)
                _write(index, pictures)


def _alone(name: str, index: Index) -> AbstractContextManager[bool]:
    return locked(index.folder.with_suffix(".lock"), name)


def _has_pictures(index: Index) -> bool:
    try:
        index.pictures()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return False
    return True


def _looked_at(name: str, index: Index, reading: Reading) -> Pictures:
    base = f"{reading.roots.base or reading.roots.root}{os.sep}"
    num_media = len(index.media["kind"])
    text, starts = np.zeros(len(index), np.uint64), index.media_starts
    key, place, size = np.zeros(num_media, np.uint64), np.zeros(num_media, np.uint64), np.zeros(num_media, np.int64)
    sound = np.flatnonzero(index.text_tokens != REFUSED).tolist()
    for record in _with_bar(sound, f"pictures of {name}"):
        sample = reading.sample(record, index.record(record))
        media = sample.media()
        if not media:
            text[record] = _hashed(repr([turn.text for turn in sample.turns]).encode())
        for at, (_, file) in enumerate(media, starts[record]):
            if isinstance(file, PackedFile):
                size[at] = file.size
            else:
                resolved = _resolved(file)
                key[at], place[at] = (_hashed(os.fsencode(p)) for p in (str(file).removeprefix(base), resolved))
                size[at] = _size(resolved)
    sides = index.media["height"], index.media["width"]
    return Pictures(text, starts, key, place, size, np.zeros(num_media, np.uint64), *sides)


def _hash(name: str, index: Index, reading: Reading, pictures: Pictures, wanted: np.ndarray, num_workers: int) -> None:
    """Puts the digests of these media, bool [media], into `pictures`; of those inside of records as their keys too."""
    owners = np.repeat(np.arange(len(index)), np.diff(index.media_starts))

    def digests(record: int) -> Iterator[tuple[int, int, bool]]:
        media = reading.sample(record, index.record(record)).media()
        for at, (_, file) in enumerate(media, int(index.media_starts[record])):
            if wanted[at]:
                yield at, _digest(file), isinstance(file, PackedFile)

    records = iter(_with_bar(np.unique(owners[wanted]).tolist(), f"comparing pictures of {name}"))
    with ThreadPoolExecutor(max(num_workers, 1)) as threads:
        while block := list(islice(records, BLOCK)):
            for found in threads.map(lambda record: list(digests(record)), block):
                for at, digest, is_packed in found:
                    pictures.digest[at] = digest
                    if is_packed:
                        pictures.key[at] = digest


def _with_bar(records: list[int], title: str) -> Iterable[int]:
    """The records, with a progress bar where they are many."""
    with Progress(*COLUMNS, console=Console(stderr=True), disable=len(records) < PARALLEL_ABOVE) as progress:
        yield from progress.track(records, description=title)


def _write(index: Index, pictures: Pictures) -> None:
    with whole_file(index.folder / PICTURES, "wb", several=True) as file:
        np.savez(file, allow_pickle=False, rows=index.stamp(), **pictures.stored())


def _resolved(file: Path) -> str:
    """As os.path.realpath has it, whose way up the folders is gone once for each."""
    if file.is_symlink():
        return os.path.realpath(file)
    return os.path.join(_resolved_folder(str(file.parent)), file.name)


@lru_cache(maxsize=2**16)
def _resolved_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _size(path: str) -> int:
    """Bytes of a file, or of all frames of a folder; -1 where it cannot be known."""
    try:
        return sum(part.stat().st_size for part in _parts(Path(path)))
    except (OSError, ValueError):
        return -1


def _parts(file: Path) -> list[Path]:
    return folder_frames(file) if file.is_dir() else [file]


def _digest(file: MediaFile) -> int:
    digest = blake2b(digest_size=8)
    try:
        for part in [file] if isinstance(file, PackedFile) else _parts(file):
            with open_medium(part) as content:
                while block := content.read(BYTES):
                    digest.update(block)
    except (OSError, ValueError):  # it will be refused when it is decoded; until then it is like no other
        digest.update(os.fsencode(str(file)))
    return _number(digest.digest())


def _hashed(content: bytes) -> int:
    return _number(blake2b(content, digest_size=8).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little") or 1  # 0 stands for none
