"""Paths of records: what stays below the root, what leaves it, and what is no path."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_train.records.media_paths import inside
from llava_train.records.record import BadRecord

ROOT = Path("/data/a")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("1.png", "/data/a/1.png"),
        ("b/../1.png", "/data/a/1.png"),
        ("..1.png", "/data/a/..1.png"),
        ("b\\1.png", "/data/a/b/1.png"),
        ("../b/1.png", "/data/b/1.png"),
        ("/data/a/1.png", "/data/a/1.png"),
        ("frames/", "/data/a/frames"),
    ],
)
def test_path_within_the_data_root(entry, expected):
    assert inside(ROOT, entry, (ROOT, Path("/data"))) == Path(expected)


@pytest.mark.parametrize(
    "entry",
    [
        "../1.png",
        "../ab/1.png",
        "b/../../1.png",
        "..\\1.png",
        "/1.png",
        "/data/ab/1.png",
        "\\\\host\\1.png",
        "C:\\1.png",
    ],
)
def test_path_outside_is_refused_with_the_remedy(entry):
    with pytest.raises(BadRecord, match=r"outside of /data/a: .*data\.allow_outside_root=true"):
        inside(ROOT, entry, (ROOT,))


@pytest.mark.parametrize("entry", ["../1.png", "/1.png"])
def test_path_outside_where_that_is_allowed(entry):
    assert inside(ROOT, entry, None) == ROOT / entry


@pytest.mark.parametrize("allowed", [(ROOT,), None])
@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("VBORw0KGgoi" * 9000, r"path 'VBORw0.*'\.\.\. \(99,000 characters\) is longer than any file"),
        ("\u732b" * 86, r"path '\\u732b.*\(86 characters\) is longer than any file's"),  # 258 bytes in one name
        ("a/" * 2046 + "1.png", r"\(4,097 characters\) is longer than any file's"),
        ("data:image/png;base64,iVBORw0KGgo=", "is the medium itself: save it as a file"),
        ("iVBORw0KGgo" + "AAAA/w9+" * 20 + "==", "is the medium itself: save it as a file"),
        ("/9j/" + "AAAA/w9+" * 9000, "is the medium itself: save it as a file"),
        ("data:image/png;base64," + "A" * 50000, "is the medium itself: save it as a file"),
        ("file:///data/a/1.png", "is an URL: give its path alone"),
        ("https://host/1.png", "is an URL: download it, and give its path"),
        ("s3://bucket/1.png", "is an URL: download it, and give its path"),
    ],
)
def test_what_no_file_can_be_called_is_refused_in_short_with_the_remedy(entry, told, allowed):
    with pytest.raises(BadRecord, match=told) as caught:
        inside(ROOT, entry, allowed)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("allowed", [(ROOT,), None])
@pytest.mark.parametrize("entry", ["a" * 255, "a" * 251 + "/" + "b" * 255])
def test_long_paths_that_files_may_have_are_paths(entry, allowed):
    assert inside(ROOT, entry, allowed) == ROOT / entry


@pytest.mark.parametrize("allowed", [(ROOT,), None])
@pytest.mark.parametrize("entry", ["", ".", "b/..", "a\0.png", "a\ud800.png"])
def test_what_is_no_path_is_refused(entry, allowed):
    with pytest.raises(BadRecord, match=r"names no file|no path has"):
        inside(ROOT, entry, allowed)


def test_relative_root_is_that_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inside(Path("data"), "1.png", (Path("data"),)) == Path("data/1.png")
    assert inside(Path("data"), str(tmp_path / "data/1.png"), (Path("data"),)) == tmp_path / "data/1.png"
    with pytest.raises(BadRecord):
        inside(Path("data"), "../1.png", (Path("data"),))


def test_links_within_the_root_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").write_bytes(b"pixels")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    root = tmp_path / "root"
    assert inside(root, "link/1.png", (root,)).read_bytes() == b"pixels"
    assert inside(root, "link/../1.png", (root,)) == root / "1.png"  # not beside what the link leads to
