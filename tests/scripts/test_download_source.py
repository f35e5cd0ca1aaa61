"""Published sources from a stand-in for the hub, with its layout, to records that a mixture reads."""

from __future__ import annotations

import fnmatch
import importlib
import io
import json
import shutil
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llava_train.config.mixture import load_mixture
from llava_train.records.media_file import PackedFile
from llava_train.records.readers.open import open_source, record_of

SUBSET = "ai2d(cauldron,llava_format)"
MIXTURE = f"""
sources:
  ai2d: {{file: vision/ai2d_12.json, media_root: media, repository: "org/Data:{SUBSET}", sampling: "first:50%"}}
  whole: {{file: whole.jsonl, repository: org/Whole}}
  video: {{file: video.json, repository: "org/Data:video"}}
  secret: {{file: secret.json, repository: unreleased}}
"""


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8 + number), (number, 2, 3)).save(content, "JPEG")
    return content.getvalue()


def rows(start: int, stop: int) -> list[dict]:
    """The columns in which the sets are published; every third row is text alone."""
    images = [None if i % 3 == 0 else {"bytes": picture(i), "path": f"{i}.jpg" if i % 2 else None} for i in range(stop)]
    turns = [{"from": "human", "value": "Größe?"}, {"from": "gpt", "value": "drei"}]
    return [
        {"id": str(i), "image": images[i], "conversations": turns, "data_source": "made"} for i in range(start, stop)
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Repositories as folders; what is asked of the hub is copied from there."""
    folder = tmp_path / "hub"
    for place in (f"org/Data/{SUBSET}", "org/Whole/data"):
        (folder / place).mkdir(parents=True)
        for shard in range(2):
            table = pa.Table.from_pylist(rows(shard * 6, shard * 6 + 6))
            pq.write_table(table, folder / place / f"train-{shard:05}-of-00002.parquet")
    (folder / "org/Data/README.md").write_text("")
    (folder / "org/Data/video").mkdir()
    (folder / "org/Data/video/clips.tar.gz").write_bytes(b"")
    (tmp_path / "mix.yaml").write_text(MIXTURE)
    return folder


@pytest.fixture
def script(script: ModuleType, hub, monkeypatch) -> ModuleType:
    module = importlib.import_module("download_source")

    def snapshot_download(repo_id: str, repo_type: str, local_dir: Path, allow_patterns: list[str]) -> None:
        assert repo_type == "dataset"
        for file in (hub / repo_id).rglob("*"):
            name = str(file.relative_to(hub / repo_id))
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, local_dir / name)
        (local_dir / ".cache").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(module, "snapshot_download", snapshot_download)
    return module


@pytest.fixture
def run(script, tmp_path):
    return lambda *arguments: script.main([str(tmp_path / "mix.yaml"), *arguments, "--root", str(tmp_path / "root")])


def assert_same(file: str | Path, media_root: Path) -> None:
    """A source holds the records and pictures of the hub."""
    found = [record_of(raw) for raw in open_source(file, "s")]
    for record, row in zip(found, rows(0, 12), strict=True):
        images = record.get("image") or []
        images = images if isinstance(images, list) else [images]
        contents = [
            entry.read() if isinstance(entry, PackedFile) else (media_root / entry).read_bytes() for entry in images
        ]
        assert contents == ([row["image"]["bytes"]] if row["image"] else [])
        assert {key: record[key] for key in ("id", "conversations", "data_source")} == {
            key: row[key] for key in ("id", "conversations", "data_source")
        }


def test_parquet_is_read_by_the_mixture_that_is_written(run, tmp_path):
    run("ai2d", "whole")
    root = tmp_path / "root"
    mixture = load_mixture(str(root / "mix.yaml"))
    assert (mixture["ai2d"].file, mixture["ai2d"].sampling) == ("vision/ai2d_12", "first:50%")
    assert mixture["secret"].file == "secret.json"
    for name in ("ai2d", "whole"):
        assert_same(root / mixture[name].file, root)
    assert not list(root.rglob("*.partial")) + list(root.rglob(".cache"))


def test_json_is_read_by_the_mixture_as_it_stands(run, tmp_path):
    run("ai2d", "whole", "--as", "json")
    root = tmp_path / "root"
    assert_same(root / "vision/ai2d_12.json", root / "media")
    assert_same(root / "whole.jsonl", root)
    assert json.loads((root / "vision/ai2d_12.json").read_text())[1]["image"] == "ai2d_12_images/00000/1_0.jpg"
    assert sorted(path.name for path in root.rglob("*") if path.is_dir()) == [
        *["00000", "00000", "ai2d_12_images", "media", "vision", "whole_images"]
    ]


def test_what_is_broken_off_goes_on_and_what_is_there_stays(run, script, tmp_path, monkeypatch, capsys):
    whole = script.snapshot_download

    def broken_off(*args, local_dir: Path, **kwargs):
        whole(*args, local_dir=local_dir, **kwargs)
        next(local_dir.rglob("train-00001*")).unlink()
        raise ConnectionError("the line is cut")

    monkeypatch.setattr(script, "snapshot_download", broken_off)
    with pytest.raises(SystemExit, match="the line is cut"):
        run("whole")
    assert not (tmp_path / "root" / "whole").exists()
    left = next((tmp_path / "root").rglob("train-00000*"))
    assert left.parts[-3:-1] == ("whole.partial", "data")
    monkeypatch.setattr(script, "snapshot_download", whole)
    run("whole")
    assert_same(tmp_path / "root" / "whole", tmp_path)
    monkeypatch.setattr(script, "snapshot_download", broken_off)
    run("whole")
    assert "whole: is there" in capsys.readouterr().out


def test_half_of_the_shards_are_not_taken_for_all(run, hub, tmp_path):
    (hub / "org/Whole/data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(SystemExit, match="lacks 1 of 2 shards of train"):
        run("whole")
    assert not (tmp_path / "root" / "whole").exists()


REFUSED = {
    "secret": "repository is unreleased",
    "video": "org/Data:video has no Parquet files in the layout of the hub",
    "ai3d": "is no source of it(.|\n)*known: ai2d, whole",
}


@pytest.mark.parametrize(("name", "told"), REFUSED.items())
def test_what_cannot_be_downloaded_is_told(run, name, told):
    with pytest.raises(SystemExit, match=told):
        run(name)


def test_a_row_that_lacks_its_image_says_so_in_json(script, tmp_path):
    (tmp_path / "out").mkdir()
    pq.write_table(pa.Table.from_pylist(rows(0, 2)), tmp_path / "a.parquet")
    lacking, pictured = script._with_images("s", str(tmp_path / "a.parquet"), tmp_path / "out", "media")
    assert (lacking["image"], "video" in lacking) == ([], False)
    assert pictured["image"] == "media/00000/1_0.jpg"
