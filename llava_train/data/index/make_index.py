"""Makes the index of a source: its records are measured by processes, none is decoded, memory does not grow.

Enters: the records of a source. Leaves: the folder that `index.py` reads, whole or absent, kept in `cache_dir` while
nothing that it depends on changes; made by one process while the others wait.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from socket import gethostname
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from llava_train.config.schema import Config
from llava_train.data.index.source_index import (
    ABOUT,
    CUT,
    MEDIA,
    MEDIUM,
    MEDIUM_KINDS,
    RECORDS,
    REFUSED,
    ROWS,
    SCHEMA,
    Index,
)
from llava_train.data.media.sample_media import MediaReader, MediumSize
from llava_train.data.samples.encode import Encoder, MeasuredText
from llava_train.data.samples.parse import MediaRoots, to_answered
from llava_train.data.samples.sample import Sample
from llava_train.data.samples.sample_notes import note_of
from llava_train.records.identity import digest
from llava_train.records.media_file import PackedFile
from llava_train.records.readers.open import Raw, RecordSource, record_of
from llava_train.shared.child_processes import follow_parent, shielded
from llava_train.shared.errors import DataError, RunError

FORMAT = 8  # of the folder; a change of form makes old indexes unread
CHUNK = 256  # records measured at a time
PARALLEL_ABOVE = 2048  # records; below, starting processes costs more than it saves
AHEAD = 4  # chunks per process that wait to be measured
COLUMNS = (*Progress.get_default_columns(), MofNCompleteColumn())
MISSING = "missing file"
OF_FILES = (MISSING, "unreadable image", "unreadable video")  # refusals that a changed file may end


class RecordPlace(NamedTuple):
    """A record to be measured. `offset`: where its JSON stands in the file that the index reads it from."""

    position: int
    offset: int
    raw: Raw


@dataclass(frozen=True)
class Reading:
    """How records of a source become samples and are measured. Picklable."""

    encoder: Encoder
    media: MediaReader
    roots: MediaRoots

    def sample(self, position: int, raw: Raw, source: str = "") -> Sample:
        """Raises DataError with reason `bad record`."""
        return to_answered(record_of(raw), source, position, self.roots)

    def packed_in(self, folder: Path) -> Reading:
        """The same, with the media inside of records in an index's folder."""
        return replace(self, roots=replace(self.roots, packed=folder / MEDIA))

    def rows(self, places: Sequence[RecordPlace]) -> pa.RecordBatch:
        """A row of SCHEMA for each record."""
        return _batch(places, [self._row(place) for place in places])

    def _row(self, place: RecordPlace) -> _Row:
        of_record = digest(place.raw)
        try:
            sample = self.sample(place.position, place.raw)
            measured, sizes = self.encoder.measure(sample), self.media.sizes(sample)
            return _Row(measured, sizes, note_of(sample), of_record)
        except DataError as error:
            return _Row(MeasuredText(REFUSED, 0, []), [], 0, of_record, error.reason, error.detail)


class _Row(NamedTuple):
    measured: MeasuredText
    media: list[MediumSize]
    note: int
    digest: int
    reason: str = ""
    detail: str = ""


def load_index(
    source: RecordSource, reading: Reading, settings: Any, num_workers: int, cache_dir: Path, mend: bool = True
) -> Index:
    """The index of a source, from `cache_dir` or made there. settings: what else its rows depend on, as JSON.

    Processes that ask at the same time make it once. mend: look again for files that were missing or unreadable.
    Raises DataError where the source cannot be read as a whole.
    """
    settings = [settings, [str(value) for value in vars(reading.roots).values()]]
    about = {"format": FORMAT, "files": _stamps(source.files()), "settings": settings}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / f"{source.path.stem[:40]}-{key}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock"), source.name) as alone:
        if (index := _opened(folder)) is None:
            _make(folder, source, reading, about, num_workers, alone)
            return Index(folder)
        here = reading.packed_in(folder)
        if mend and (places := _changed(index, here)):
            _mend(index, here, places)
            return Index(folder)
        return index


def _opened(folder: Path) -> Index | None:
    """None where there is none; one that a disk has damaged goes."""
    if not folder.exists():
        return None
    try:
        return Index(folder)
    except (OSError, ValueError, KeyError) as error:  # Arrow's own are ValueErrors and OSErrors
        Console(stderr=True).print(f"damaged, made anew: {folder} ({error})", highlight=False)
        shutil.rmtree(folder)
        return None


def _make(
    folder: Path, source: RecordSource, reading: Reading, about: dict[str, Any], num_workers: int, alone: bool
) -> None:
    """alone: no other process makes it at the same time."""
    if alone:
        for left in folder.parent.glob(f"{folder.name}.*.part"):
            shutil.rmtree(left)
    beside = folder.with_suffix(f".{gethostname()}-{os.getpid()}.part")
    beside.mkdir()
    try:
        _write(beside, source, reading, about, num_workers)
        with suppress(OSError) if folder.exists() else nullcontext():  # another has made the same
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(folder: Path, source: RecordSource, reading: Reading, about: dict[str, Any], num_workers: int) -> None:
    chunks = folder / "chunks.arrow"
    with (folder / RECORDS).open("wb") as records, (folder / MEDIA).open("wb", buffering=0) as media:
        places = _places(source, records, media)
        _write_rows(chunks, _measured(source, places, reading.packed_in(folder), num_workers))
        records.flush()
        for file in (records, media):
            os.fsync(file.fileno())
        is_made = records.tell() > 0
    with pa.memory_map(str(chunks)) as mapped:
        table = pa.ipc.open_file(mapped).read_all().combine_chunks()  # one batch, so that columns are whole arrays
        _write_rows(folder / ROWS, table.to_batches())
    chunks.unlink()
    file_sizes = {name: (folder / name).stat().st_size for name in (ROWS, RECORDS, MEDIA)}
    content = about | {"records": RECORDS if is_made else str(source.path), "file_sizes": file_sizes}
    (folder / ABOUT).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_rows(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Whole on disk when it returns."""
    with path.open("wb") as file:
        with pa.ipc.new_file(file, SCHEMA) as rows:
            for batch in batches:
                rows.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


def _places(source: RecordSource, records: IO[bytes], media: IO[bytes]) -> Iterator[RecordPlace]:
    """The records of a source; those that are not JSON in its file are written to `records`, with the media inside."""
    for position, raw in enumerate(source):
        if raw.offset >= 0:
            yield RecordPlace(position, raw.offset, raw)
            continue
        starts = []
        for blob in raw.blobs:
            starts.append(media.tell())
            media.write(blob)
        content = raw.content
        if starts:
            content = json.dumps(_placed(json.loads(content), starts, raw.blobs), ensure_ascii=False).encode()
        yield RecordPlace(position, records.tell(), replace(raw, content=content, blobs=()))
        records.write(content + b"\n")


def _placed(record: Any, starts: list[int], blobs: Sequence[bytes]) -> Any:
    """A record whose media {blob: i, name} say where in MEDIA they stand."""
    if isinstance(record, list):
        return [_placed(entry, starts, blobs) for entry in record]
    if not isinstance(record, dict):
        return record
    if "blob" in record:
        number = record["blob"]
        blob = blobs[number]
        where = {"path": "", "offset": starts[number], "size": len(blob)}
        return {**where, "name": record["name"], "sum": zlib.crc32(blob)}
    return {key: _placed(value, starts, blobs) for key, value in record.items()}


def _measured(
    source: RecordSource, places: Iterator[RecordPlace], reading: Reading, num_workers: int
) -> Iterator[pa.RecordBatch]:
    """Rows in the order of the records; by processes where there are many."""
    chunks = iter(lambda: list(islice(places, CHUNK)), [])
    first = list(islice(chunks, PARALLEL_ABOVE // CHUNK))
    if len(first) < PARALLEL_ABOVE // CHUNK:
        yield from map(reading.rows, first)
        return
    num_workers = max(1, min(num_workers, len(os.sched_getaffinity(0))))
    with _pool(num_workers, reading) as pool, Progress(*COLUMNS, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"indexing {source.name}", total=source.count())
        for rows in _in_order(pool, chain(first, chunks), AHEAD * num_workers):
            progress.advance(task, len(rows))
            yield rows


@contextmanager
def _pool(num_workers: int, reading: Reading) -> Iterator[ProcessPoolExecutor]:
    with shielded():
        pool = ProcessPoolExecutor(num_workers, get_context("fork"), _start_process, (reading,))
        pool.submit(int).result()  # starts the processes here, shielded
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RunError("a process that indexes was ended from outside, perhaps for want of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, chunks: Iterable[list[RecordPlace]], ahead: int) -> Iterator[pa.RecordBatch]:
    """Memory holds a bounded number of chunks."""
    waiting: deque[Future[pa.RecordBatch]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_rows_in_process, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_process_reading: Reading  # of an index process, set when it starts


def _start_process(reading: Reading) -> None:
    global _process_reading
    _process_reading = reading
    follow_parent()


def _rows_in_process(places: list[RecordPlace]) -> pa.RecordBatch:
    return _process_reading.rows(places)


def _batch(places: Sequence[RecordPlace], rows: Sequence[_Row]) -> pa.RecordBatch:
    media = [row.media for row in rows]
    sizes = [(MEDIUM_KINDS.index(kind), *others) for of_row in media for kind, *others in of_row]
    cuts = [row.measured.cuts for row in rows]
    columns = [
        [place.offset for place in places],
        [len(place.raw.content) for place in places],
        [row.measured.text_tokens for row in rows],
        [row.measured.supervised for row in rows],
        [row.note for row in rows],
        [row.digest for row in rows],
        _lists(media, sizes, MEDIUM),
        _lists(cuts, [cut for of_row in cuts for cut in of_row], CUT),
        [row.reason for row in rows],
        [row.detail for row in rows],
    ]
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def _lists(entries: Sequence[Sequence[Any]], flat: Sequence[Sequence[Any]], struct: pa.StructType) -> pa.Array:
    """`flat`: the fields of all entries, one after the other."""
    columns = list(zip(*flat, strict=True)) or [()] * struct.num_fields
    arrays = [pa.array(column, field.type) for column, field in zip(columns, struct, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(entry) for entry in entries])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), pa.StructArray.from_arrays(arrays, fields=list(struct)))


def _changed(index: Index, reading: Reading) -> list[RecordPlace]:
    """Records refused for a file that has come, or has changed, since the index was made."""
    made = (index.folder / ROWS).stat().st_mtime
    places = []
    for position, reason in index.refused(OF_FILES):
        raw = index.record(position)
        sample = reading.sample(position, raw)
        files = [file.path if isinstance(file, PackedFile) else file for file in (*sample.images, *sample.videos)]
        if reason == MISSING:
            is_other = all(map(os.path.exists, files))
        else:
            is_other = any(os.path.exists(file) and os.path.getctime(file) > made for file in files)
        if is_other:
            places.append(RecordPlace(position, int(index.offsets[position]), raw))
    return places


def _mend(index: Index, reading: Reading, places: list[RecordPlace]) -> None:
    """Measures these records again; the file is replaced as a whole, also where nothing came of it."""
    with pa.memory_map(str(index.folder / ROWS)) as file:
        old = pa.ipc.open_file(file).read_all()
        new = pa.Table.from_batches([reading.rows(places)])
        taken = np.arange(len(old))
        taken[[place.position for place in places]] = len(old) + np.arange(len(places))
        table = pa.concat_tables([old, new]).take(pa.array(taken)).combine_chunks()
        beside = index.folder / f"{ROWS}.part"
        _write_rows(beside, table.to_batches())
        beside.replace(index.folder / ROWS)


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    return [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@contextmanager
def locked(path: Path, name: str) -> Iterator[bool]:
    """One process at a time; the system lets go of the lock of a process that dies. False: it knows no locks here."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(f"waiting for another process that indexes {name}", highlight=False)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            yield False
            return
        yield True


def index_folder(config: Config) -> Path:
    """Where the indexes of sources and the plans of epochs are kept, for all runs beside this one."""
    return Path(config.data.cache or Path(config.run.dir).parent / "index")
