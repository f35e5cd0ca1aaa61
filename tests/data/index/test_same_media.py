"""Samples that share a picture are held out together, in every format and order; different pictures are never one."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_make_index import reading

from llava_train.data.index import same_media
from llava_train.data.index.make_index import load_index
from llava_train.data.index.same_media import find_pictures
from llava_train.data.index.source_index import PICTURES, ROWS
from llava_train.data.samples.held_out import held_out_samples, same_content
from llava_train.records.readers.open import open_source, record_of
from llava_train.shared.errors import ConfigError

NUM, ASKED = 6, 3  # pictures, and questions about each
CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def picture(shade: int, kind: str = "BMP", side: int = 8) -> bytes:
    """Those of one kind and side have as many bytes and pixels."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (shade * 20, 9, 9)).save(content, kind)
    return content.getvalue()


def asked(identity: str, **media) -> dict:
    turns = [{"from": "human", "value": f"<image>\nq {identity}"}, {"from": "gpt", "value": "a"}]
    return {"id": identity, **media, "conversations": turns}


def questions(shuffled: bool = False) -> list[tuple[int, str]]:
    """(picture, id), far from each other."""
    found = [(i, f"{i}-{j}") for j in range(ASKED) for i in range(NUM)]
    return random.Random(3).sample(found, len(found)) if shuffled else found


def as_json(folder: Path, shuffled: bool) -> Path:
    for i in range(NUM):
        (folder / f"{i}.bmp").write_bytes(picture(i))
    (folder / "a.json").write_text(json.dumps([asked(name, image=f"{i}.bmp") for i, name in questions(shuffled)]))
    return folder / "a.json"


def table(shuffled: bool, path: str | None) -> pa.Table:
    cells = pa.array([{"bytes": picture(i), "path": path} for i, _ in questions(shuffled)], CELL)
    return pa.Table.from_pylist([asked(name) for _, name in questions(shuffled)]).append_column("image", cells)


def as_parquet(folder: Path, shuffled: bool, path: str | None = None) -> Path:
    pq.write_table(table(shuffled, path), folder / "a.parquet")
    return folder / "a.parquet"


def as_parquet_of_one_path(folder: Path, shuffled: bool) -> Path:
    return as_parquet(folder, shuffled, "image.bmp")


def as_arrow(folder: Path, shuffled: bool) -> Path:
    made = table(shuffled, None)
    with pa.ipc.new_stream(folder / "a.arrow", made.schema) as stream:
        stream.write_table(made)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": None}))
    return folder


def as_tar(folder: Path, shuffled: bool) -> Path:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, (i, name) in enumerate(questions(shuffled)):
            for suffix, content in (("bmp", picture(i)), ("json", json.dumps(asked(name)).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "a.tar"


@pytest.fixture
def entry(tokenizer, tmp_path):
    """A source's name, its index, and how its records are read."""

    def make(path: Path, root: Path | None = None):
        how = reading(root or path.parent, tokenizer)
        index = load_index(open_source(path, path.stem), how, "one", 0, tmp_path / "cache")
        assert index.refused(["bad record", "missing file", "unreadable image"]) == []
        return path.stem, index, how.packed_in(index.folder)

    return make


def groups(*entries) -> list[set[str]]:
    """Ids of records that go together, over all sources."""
    find_pictures(entries, 2)
    found: dict[int, set[str]] = {}
    for (name, index, _), content in zip(entries, same_content([e[1].pictures() for e in entries]), strict=True):
        for position, key in enumerate(content.tolist()):
            found.setdefault(key, set()).add(f"{name}/{record_of(index.record(position))['id']}")
    return sorted(found.values(), key=min)


@pytest.mark.parametrize("write", [as_json, as_parquet, as_parquet_of_one_path, as_arrow, as_tar])
def test_all_questions_about_a_picture_go_together_in_every_format_and_order(write: Callable, entry, tmp_path):
    drawn = []
    for shuffled in (False, True):
        (folder := tmp_path / f"{shuffled}").mkdir()
        name, index, how = entry(write(folder, shuffled))
        assert not (index.folder / PICTURES).exists()
        assert groups((name, index, how)) == [{f"{name}/{i}-{j}" for j in range(ASKED)} for i in range(NUM)]
        held = held_out_samples(index.content, ASKED, 0, "one")
        drawn.append({record_of(index.record(int(i)))["id"] for i in np.flatnonzero(held)})
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == ASKED


def test_a_file_is_one_by_any_path_and_any_copy(entry, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name, shade, side in (("a", 1, 8), ("sub/copy", 1, 8), ("alike", 2, 8), ("larger", 3, 9)):
        (tmp_path / f"{name}.bmp").write_bytes(picture(shade, side=side))
    (tmp_path / "link.bmp").symlink_to("a.bmp")
    (tmp_path / "folder").symlink_to("sub")
    os.link(tmp_path / "a.bmp", tmp_path / "hard.bmp")
    paths = ["a.bmp", "./sub/../a.bmp", "link.bmp", "hard.bmp", "sub/copy.bmp", "folder/copy.bmp", "sub//copy.bmp"]
    records = [asked(path, image=path) for path in [*paths, "alike.bmp", "larger.bmp"]]
    (tmp_path / "q.json").write_text(json.dumps(records))
    read, digest = [], same_media._digest
    monkeypatch.setattr(same_media, "_digest", lambda file: (read.append(file.name), digest(file))[1])
    found = entry(tmp_path / "q.json")
    assert groups(found) == [{f"q/{path}" for path in paths}, {"q/alike.bmp"}, {"q/larger.bmp"}]
    assert "larger.bmp" not in read  # no other is of its size
    read.clear()
    assert len(groups(found)) == 3
    assert read == []


def test_pictures_are_one_over_sources_of_any_format(entry, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    files, packed = entry(as_json(tmp_path / "one", False)), entry(as_parquet(tmp_path / "two", True))
    assert groups(files, packed) == [{f"a/{i}-{j}" for j in range(ASKED)} for i in range(NUM)]


def test_pictures_that_are_shared_by_way_of_others_go_together(entry, tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name) % 7, "PNG"))
    records = [asked(name, image=f"{name}.png") for name in "abcd"]
    for pair in ("ab", "cb"):
        record = asked(pair, image=[f"{name}.png" for name in pair])
        record["conversations"][0]["value"] = "<image><image> alike?"
        records.append(record)
    texts = [{"id": name, "conversations": asked(name[0])["conversations"]} for name in ("x1", "x2", "y1")]
    (tmp_path / "q.json").write_text(json.dumps([*records, *texts]))
    together = [{"q/a", "q/ab", "q/b", "q/c", "q/cb"}, {"q/d"}, {"q/x1", "q/x2"}, {"q/y1"}]
    assert groups(entry(tmp_path / "q.json")) == together


def test_folders_of_equal_frames_are_one_film(entry, tmp_path):
    for folder, shades in (("v", (1, 2)), ("w", (1, 2)), ("z", (2, 1))):
        (tmp_path / folder).mkdir()
        for number, shade in enumerate(shades):
            (tmp_path / folder / f"{number}.bmp").write_bytes(picture(shade))
    (tmp_path / "q.json").write_text(json.dumps([asked(name, video=name) for name in "vwz"]))
    assert groups(entry(tmp_path / "q.json")) == [{"q/v", "q/w"}, {"q/z"}]


def test_rows_that_change_and_damage_make_them_anew(entry, tmp_path):
    found = entry(as_json(tmp_path, False))
    index, before = found[1], groups(found)
    for spoil in (lambda: (index.folder / PICTURES).write_bytes(b"PK"), lambda: os.utime(index.folder / ROWS)):
        spoil()
        with pytest.raises((ValueError, OSError)):
            index.pictures()
        assert groups(found) == before


@pytest.mark.parametrize(("held_out", "measured"), [(3, "abbb"), (2, "ac"), (4, "abbb"), (0.2, "a")])
def test_a_group_that_is_too_large_is_passed_over(held_out, measured, monkeypatch):
    monkeypatch.setattr(
        "llava_train.data.samples.held_out._mixed", lambda values: values
    )  # drawn in the order of the alphabet
    content = np.array([ord(name) for name in "abbbc"], np.uint64)
    held = held_out_samples(content, held_out, 0, "one")
    assert "".join(np.array(list("abbbc"))[held]) == measured


def test_all_groups_are_never_held_out():
    with pytest.raises(ConfigError, match="takes all 4 samples"):
        held_out_samples(np.array([1, 1, 1, 2], np.uint64), 4, 0, "one")
    assert held_out_samples(np.array([1, 1, 1, 2, 2], np.uint64), 1, 0, "one").sum() in (2, 3)
