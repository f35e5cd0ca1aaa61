"""The same samples in every format: the same records, and the same bytes of their media."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_every_format import CONTENTS, NUMBERS, WRITERS, record

from llava_train.records.identity import digest
from llava_train.records.media_file import PackedFile
from llava_train.records.readers.open import open_source, record_of


@pytest.fixture(params=WRITERS)
def written(request, tmp_path) -> Path:
    """The samples in one of the formats."""
    return WRITERS[request.param](tmp_path)


def test_records_and_bytes_are_the_same_in_every_format(written):
    source = open_source(written, "s")
    assert source.count() == len(NUMBERS)
    for number, raw in zip(NUMBERS, source, strict=True):
        found = record_of(raw)
        media = found.pop("image")
        assert [entry.read() if isinstance(entry, PackedFile) else _file(source, entry) for entry in media] == [
            CONTENTS[name] for name in record(number)["image"]
        ]
        found.pop("video", None)
        assert found == {key: value for key, value in record(number).items() if key != "image"}


def test_what_identifies_records_does_not_depend_on_where_the_files_lie(written, tmp_path):
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-moved"))
    tmp_path.mkdir()
    digests = [digest(raw) for raw in open_source(moved / written.relative_to(tmp_path), "s")]
    moved.rename(tmp_path / "back")
    assert len(set(digests)) == len(NUMBERS)
    assert digests == [digest(raw) for raw in open_source(tmp_path / "back" / written.relative_to(tmp_path), "s")]


def _file(source, entry: str) -> bytes:
    return (source.path.parent / entry).read_bytes()


def test_media_within_tar_and_arrow_files_are_read_in_place(tmp_path):
    for name in ("tar", "saved"):
        (folder := tmp_path / name).mkdir()
        media = [m for raw in open_source(WRITERS[name](folder), "s") for m in record_of(raw)["image"]]
        assert len(media) == len(CONTENTS)
        assert all(medium.content is None and medium.path.is_absolute() for medium in media)


def test_source_says_what_it_depends_on(written):
    files = open_source(written, "s").files()
    assert files
    assert all(Path(file).is_file() for file in files)
