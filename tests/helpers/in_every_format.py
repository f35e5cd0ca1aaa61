"""The same samples in every format."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TURNS = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8 + number % 90, 9), (number * 7 % 256, 3, number % 200)).save(content, "PNG")
    return content.getvalue()


def pictures_of(number: int) -> list[str]:
    """Names: of none, one or two pictures, in turn."""
    return [f"{number}.{i}.png" for i in range(number % 3)]


def record(number: int) -> dict:
    tags = "<image>\n" * len(pictures_of(number))
    turns = [{"from": "human", "value": f"{tags}Wie groß? é雪😀 {number}"}, {"from": "gpt", "value": f"{number} cm"}]
    return {"id": f"id-{number}", "data_source": "made", "image": pictures_of(number), "conversations": turns}


NUMBERS = range(500)
HALF = len(NUMBERS) // 2  # of two shards
CONTENTS = {name: picture(number * 2 + i) for number in NUMBERS for i, name in enumerate(pictures_of(number))}


def write_json(folder: Path) -> Path:
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    (folder / "a.json").write_text(json.dumps([record(n) for n in NUMBERS], ensure_ascii=False), encoding="utf-8")
    return folder / "a.json"


def write_jsonl(folder: Path) -> Path:
    write_json(folder)
    lines = "\n".join(json.dumps(record(n)) for n in NUMBERS)
    (folder / "a.jsonl").write_text(lines, encoding="utf-8")
    return folder / "a.jsonl"


def rows(numbers=NUMBERS) -> list[dict]:
    """As columns of Parquet hold them."""
    cells = [[{"bytes": CONTENTS[name], "path": name} for name in pictures_of(n)] for n in numbers]
    return [record(n) | {"image": cell} for n, cell in zip(numbers, cells, strict=True)]


SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.list_(CELL),
        "conversations": TURNS,
        "data_source": pa.string(),
        "hash": pa.binary(),
    }
)


def write_parquet(folder: Path) -> Path:
    """In the layout of the hub: numbered shards in `data`, more than one row group each."""
    (folder / "data").mkdir()
    for shard in range(2):
        part = pa.Table.from_pylist(rows(NUMBERS[shard * HALF : (shard + 1) * HALF]), SCHEMA)
        pq.write_table(part, folder / "data" / f"train-{shard:05}-of-00002.parquet", row_group_size=30)
    return folder


def write_saved(folder: Path) -> Path:
    """What `datasets` itself writes."""
    cell = datasets.List(datasets.Image())
    turns = datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")})
    text = datasets.Value("string")
    features = datasets.Features({"id": text, "data_source": text, "image": cell, "conversations": turns})
    made = datasets.Dataset.from_list(rows(), features=features)
    made.save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def add(tar: tarfile.TarFile, name: str, content: bytes, **header) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in header.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def write_tar(folder: Path) -> Path:
    """Two shards; every third record names its pictures by suffix, every other by name, text has none."""
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:06}.tar", "w") as tar:
            for n in NUMBERS[shard * HALF : (shard + 1) * HALF]:
                for i, name in enumerate(pictures_of(n)):
                    add(tar, f"part/{n}.{i}.png", CONTENTS[name])
                entry = record(n)
                if n % 5 == 0:
                    entry["image"] = [f"{i}.png" for i in range(n % 3)]
                if n % 7 == 0:
                    del entry["image"]
                add(tar, f"part/{n}.json", json.dumps(entry).encode())
    return folder


def as_messages(number: int) -> dict:
    """The record in the chat-messages form, its pictures where they stand."""
    parts = [{"type": "image", "image": name} for name in pictures_of(number)]
    question, answer = (turn["value"] for turn in record(number)["conversations"])
    parts.append({"type": "text", "text": question.replace("<image>\n", "")})
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return {"id": f"id-{number}", "messages": messages}


def write_messages(folder: Path) -> Path:
    write_json(folder)
    (folder / "m.jsonl").write_text("\n".join(json.dumps(as_messages(n)) for n in NUMBERS), encoding="utf-8")
    return folder / "m.jsonl"


WRITERS = {
    "json": write_json,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "saved": write_saved,
    "tar": write_tar,
}
