"""Download published sources of a mixture from the hub, as Parquet, or as the JSON and images that the mixture names.

    python data/scripts/download_source.py single_image chart2text_cauldron ai2d_cauldron --root DIR
    python data/scripts/download_source.py single_image chart2text_cauldron --root DIR --as json

Enters: a mixture (a name in data/mixtures, or a YAML file) and names of its sources, whose `repository` is
ORG/NAME or ORG/NAME:SUBSET with Parquet shards in the hub's layout. Leaves below DIR (`data.root`):

    parquet   the shards in a folder, called as the source's `file` without its suffix; and MIXTURE.yaml, the mixture
              with each source that lies there so: stages.STAGE.mixture=DIR/MIXTURE.yaml data.root=DIR
    json      the source's `file` itself, a list (or lines, where it ends in .jsonl), with its images in a folder below
              `media_root`; the mixture reads it as it stands

A download that was broken off goes on where it was. Each source appears whole or not at all, and is left alone if it is
there.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from PIL import Image

from llava_train.config.mixture import UNRELEASED, SourceConfig, load_mixture, mixture_path
from llava_train.records.image_files import IMAGE_SUFFIXES
from llava_train.records.media_file import PackedFile
from llava_train.records.readers.open import open_source, record_of
from llava_train.records.record import BadRecord
from llava_train.shared.errors import ConfigError, DataError, Fault

IN_A_FOLDER = 1000  # records whose images share a folder


def parquet_folder(source: SourceConfig, root: Path) -> Path:
    """Where the shards of a source lie."""
    return (root / source.file).with_suffix("")


def download_parquet(name: str, source: SourceConfig, split: str, folder: Path) -> None:
    """Raises ConfigError where the hub has no such shards, DataError where not all of them can be read."""
    repository, _, subset = source.repository.partition(":")
    if not repository or repository == UNRELEASED:
        raise ConfigError([Fault(name, f"repository is {repository or 'not given'}", "nothing can be downloaded")])
    partial = folder.with_name(f"{folder.name}.partial")
    pattern = f"{glob.escape(subset) or 'data'}/*.parquet"
    snapshot_download(repository, repo_type="dataset", local_dir=partial, allow_patterns=[pattern])
    shards = partial / subset
    if not [*shards.glob("*.parquet"), *shards.glob("data/*.parquet")]:
        remedy = f"see https://huggingface.co/datasets/{repository} and put {source.file} there by hand"
        raise ConfigError([Fault(name, f"{source.repository} has no Parquet files in the layout of the hub", remedy)])
    file = f"{shards}@{split}" if split else str(shards)
    print(f"{name}: {open_source(file, name).count()} records downloaded")
    _move(shards, folder)
    shutil.rmtree(partial, ignore_errors=True)


def _move(part: Path, whole: Path) -> None:
    shutil.rmtree(part / ".cache", ignore_errors=True)  # of the hub's client
    os.replace(part, whole)


def write_json(name: str, source: SourceConfig, split: str, root: Path) -> None:
    """Records and images of the shards. Raises DataError for a bad record."""
    file, folder = root / source.file, parquet_folder(source, root)
    media_root, media = root / source.media_root, f"{file.stem}_images"
    partial, part = media_root / f"{media}.partial", file.with_name(f"{file.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    records = _with_images(name, f"{folder}@{split}" if split else str(folder), partial, media)
    with part.open("w", encoding="utf-8") as out:
        start, between, end = ("", "\n", "\n") if file.suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")
        out.write(start)
        for i, record in enumerate(records):
            out.write((between if i else "") + json.dumps(record, ensure_ascii=False))
        out.write(end)
    shutil.rmtree(media_root / media, ignore_errors=True)
    os.replace(partial, media_root / media)
    os.replace(part, file)


def _with_images(name: str, file: str, out: Path, called: str) -> Iterator[dict[str, Any]]:
    for position, raw in enumerate(open_source(file, name)):
        record = record_of(raw)
        if isinstance(record, BadRecord):
            raise DataError(name, str(position), "bad record", str(record))
        folder = f"{position // IN_A_FOLDER:05}"
        for kind in record.keys() & {"image", "video"}:  # one that holds nothing stays: its tag has lost its medium
            entries = record[kind]
            for i, entry in enumerate(entries):
                if isinstance(entry, PackedFile):
                    content = entry.read()
                    path = Path(folder, f"{position}_{i}{_suffix(entry.name, content)}")
                    (out / folder).mkdir(exist_ok=True)
                    (out / path).write_bytes(content)
                    entries[i] = f"{called}/{path.as_posix()}"
            record[kind] = entries[0] if len(entries) == 1 else entries
        yield record


def _suffix(name: str, content: bytes) -> str:
    """Of the name, else of what the bytes are; none where neither tells."""
    if (suffix := Path(name).suffix.lower()) in IMAGE_SUFFIXES:
        return suffix
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f".{(image.format or '').lower()}"
    except OSError:
        return Path(name).suffix


def write_mixture(sources: dict[str, SourceConfig], split: str, root: Path, path: Path) -> None:
    """The mixture, with the folders of those of its sources that lie below `root` as Parquet."""
    read = {}
    for name, source in sources.items():
        if (folder := parquet_folder(source, root)).is_dir():
            source = replace(source, file=str(folder.relative_to(root)) + (f"@{split}" if split else ""))
        read[name] = {key: value for key, value in asdict(source).items() if value != ""}
    path.write_text(yaml.safe_dump({"sources": read}, sort_keys=False, allow_unicode=True), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixture", help="a name in data/mixtures, or a .yaml file")
    parser.add_argument("source", nargs="+", help="names of its sources")
    parser.add_argument("--root", type=Path, required=True, help="data.root")
    parser.add_argument("--as", dest="form", choices=("parquet", "json"), default="parquet")
    parser.add_argument("--split", default="", help="where a source has several")
    args = parser.parse_args(arguments)
    try:
        sources = load_mixture(args.mixture)
        if unknown := [name for name in args.source if name not in sources]:
            raise ConfigError([Fault(name, "is no source of it", f"known: {', '.join(sources)}") for name in unknown])
        for name in args.source:
            download(name, sources[name], args.split, args.root, args.form)
        if args.form == "parquet":
            path = args.root / mixture_path(args.mixture).name
            write_mixture(sources, args.split, args.root, path)
            print(f"train on it: stages.STAGE.mixture={path} data.root={args.root}")
    except (ConfigError, DataError, OSError) as error:
        sys.exit(f"{error}")


def download(name: str, source: SourceConfig, split: str, root: Path, form: str) -> None:
    folder, file = parquet_folder(source, root), root / source.file
    if (form == "json" and file.exists()) or (form == "parquet" and folder.exists()):
        print(f"{name}: is there")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    if fresh := not folder.exists():
        download_parquet(name, source, split, folder)
    if form == "json":
        write_json(name, source, split, root)
        if fresh:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
