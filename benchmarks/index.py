"""The index of many records of text and stated sizes: time to build, to hold out, to open again; and image headers.

usage: python benchmarks/index.py [--records 1000000] [--rows 5000000] [--folder /tmp/index-benchmark]

Writes made-up conversations as JSONL with `width` and `height`, of the lengths that instruction data have, builds their
index with a process per core and opens it anew with the view of the stage ov_stage. `--rows` repeats the rows of that
index up to so many, for the memory of a process that opens them. Each phase is a process of its own; the memory of one
is the most that it held (VmHWM). The text is tokenised by the Qwen2 tokenizer of the golden cases.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]
TOKENIZER = REPOSITORY / "tests" / "golden" / "qwen2_tokenizer"
TEXT = (
    "the a of in on and with is are this that image picture shows man woman child dog street table near large small red"
    " blue sign text which because appears standing holding background left right, there. It's 3 12 2020 colour behind"
)
HEADERS, PREFIX = 1000, 4096  # image files, and bytes of each that are read to compare


def write_records(path: Path, count: int) -> None:
    """Conversations of one to four rounds: questions of about 15 words, answers log-normal about 45 words."""
    draw = np.random.default_rng(0)
    words = np.array(TEXT.split())
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, 1000):
            for i in range(start, min(start + 1000, count)):
                turns = []
                for part in range(draw.integers(1, 5)):
                    lengths = draw.integers(5, 26), int(min(draw.lognormal(3.8, 0.8), 1000)) + 1
                    question, answer = (" ".join(draw.choice(words, length)) for length in lengths)
                    turns += [("human", question if part else f"<image>\n{question}"), ("gpt", answer)]
                width, height = draw.integers(200, 2000, 2).tolist()
                record = {"id": i, "image": f"{i}.jpg", "width": width, "height": height}
                record["conversations"] = [{"from": role, "value": text} for role, text in turns]
                file.write(json.dumps(record) + "\n")


def stage_parts(folder: Path):
    """What a run of ov_stage makes its index with: configuration, stage, source, reading."""
    from transformers import AutoTokenizer

    from llava_train.config.load import load
    from llava_train.data.index.make_index import Reading
    from llava_train.data.loading.stage_data import make_encoder
    from llava_train.data.media.sample_media import make_media_reader
    from llava_train.data.samples.parse import MediaRoots
    from llava_train.family.onevision.geometry import OneVisionGeometry
    from llava_train.records.readers.open import open_source
    from llava_train.text.placeholders import prepare_tokenizer

    config = load(["+recipe=ov_stage", "data.sizes=records", f"data.root={folder}"])
    name, stage = next(iter(config.stages.items()))
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prepare_tokenizer(tokenizer, 151646, 151647)
    grid = tuple((rows, columns) for rows, columns in stage.image.grid)
    media = make_media_reader(
        config.data, stage.video, OneVisionGeometry(384, 14, stage.image.mode, grid, stage.image.max_tiles)
    )
    reading = Reading(make_encoder(tokenizer, stage, name), media, MediaRoots(folder, sizes=True))
    return config, stage, open_source(folder / "records.jsonl", "benchmark"), reading


def built(folder: Path) -> str:
    from llava_train.data.index.make_index import load_index

    _, _, source, reading = stage_parts(folder)
    started = time.perf_counter()
    index = load_index(source, reading, "benchmark", os.cpu_count() or 1, folder / "cache")
    seconds = time.perf_counter() - started
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    tokens = float(np.mean(index.text_tokens))
    return (
        f"{len(index):,} records of {tokens:.0f} text tokens in {seconds:.1f} s: {len(index) / seconds:,.0f} a second;"
        f" {memory():.0f} MB, its largest process {children:.0f} MB"
    )


def held_out(folder: Path) -> str:
    """What an index takes in addition where samples are held out; its image files are not there, so none is hashed."""
    from llava_train.data.index.make_index import load_index
    from llava_train.data.index.same_media import find_pictures
    from llava_train.data.samples.held_out import same_content

    _, _, source, reading = stage_parts(folder)
    index = load_index(source, reading, "benchmark", 1, folder / "cache")
    started = time.perf_counter()
    find_pictures([("benchmark", index, reading)], os.cpu_count() or 1)
    found = time.perf_counter() - started
    same_content([index.pictures()])
    return f"media found in {found:.1f} s, grouped in {time.perf_counter() - started - found:.2f} s"


def opened(folder: Path) -> str:
    from llava_train.data.index.make_index import load_index

    config, stage, source, reading = stage_parts(folder)
    started = time.perf_counter()
    index = load_index(source, reading, "benchmark", 1, folder / "cache")
    return viewed(config, stage, index, reading, started)


def opened_rows(folder: Path) -> str:
    from llava_train.data.index.source_index import Index

    config, stage, _, reading = stage_parts(folder)
    started = time.perf_counter()
    return viewed(config, stage, Index(folder / "large"), reading, started)


def viewed(config, stage, index, reading, started: float) -> str:
    from llava_train.config.mixture import SourceConfig
    from llava_train.data.index.stage_samples import IndexedSource, StageSamples

    seconds, before = time.perf_counter() - started, memory()
    source = IndexedSource("benchmark", SourceConfig(file="records.jsonl"), index, reading)
    samples = StageSamples([source], config.data, reading.media, stage.max_length, 0)
    both = time.perf_counter() - started
    return (
        f"{len(index):,} rows in {seconds:.2f} s ({before:.0f} MB); with lengths and tiles of the {len(samples):,}"
        f" samples in {both:.2f} s ({memory():.0f} MB)"
    )


def repeated(folder: Path, count: int) -> str:
    """An index of `count` rows in folder/large, made of those in the cache."""
    import pyarrow as pa

    from llava_train.data.index.source_index import ROWS

    made = next(path for path in (folder / "cache").iterdir() if path.is_dir())
    shutil.copytree(made, folder / "large", dirs_exist_ok=True)
    with pa.memory_map(str(made / ROWS)) as file:
        table = pa.ipc.open_file(file).read_all()
        table = pa.concat_tables([table] * (count // len(table) + 1)).slice(0, count).combine_chunks()
    with pa.OSFile(str(folder / "large" / ROWS), "wb") as file, pa.ipc.new_file(file, table.schema) as rows:
        rows.write_table(table)
    return f"{(folder / 'large' / ROWS).stat().st_size / count:.0f} bytes a row"


def headers(folder: Path) -> str:
    """Sizes by header of JPEG files that the system has in memory, beside reading their first bytes."""
    from PIL import Image

    from llava_train.data.media.image import image_size

    paths = [folder / f"{i}.jpg" for i in range(HEADERS)]
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1024, 768)).save(paths[0])
    for path in paths[1:]:
        shutil.copy(paths[0], path)

    def prefix(path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        os.pread(file, PREFIX, 0)
        os.close(file)

    def rate(read: Callable[[Path], object]) -> float:
        started = time.perf_counter()
        for path in paths:
            read(path)
        return HEADERS / (time.perf_counter() - started)

    sizes, reads = (max(rate(read) for _ in range(5)) for read in (image_size, prefix))
    return f"{sizes:,.0f} image headers a second; os.pread of {PREFIX} bytes of each: {reads:,.0f}"


def memory() -> float:
    """MB that this process held at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_records(folder / "records.jsonl", arguments.records)
        print(f"wrote {(folder / 'records.jsonl').stat().st_size / 1e6:,.0f} MB of records", flush=True)
        phases = (built, held_out, opened, partial(repeated, count=arguments.rows), opened_rows, headers)
        for title, phase in zip(("built", "held out", "opened", "repeated", "opened", "headers"), phases, strict=True):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                print(f"{title}: {pool.submit(phase, folder).result()}", flush=True)


if __name__ == "__main__":
    main()
