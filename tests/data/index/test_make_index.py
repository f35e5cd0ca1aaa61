"""An index is whole or absent, whatever ends its making, and no larger source makes it larger in memory."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llava_train.config.schema import VideoConfig
from llava_train.data.index import make_index
from llava_train.data.index.make_index import Reading, load_index
from llava_train.data.index.source_index import ROWS, Index
from llava_train.data.media.sample_media import Limits, MediaReader
from llava_train.data.media.video import VideoReader
from llava_train.data.samples.encode import Encoder
from llava_train.data.samples.parse import MediaRoots
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.records.readers.open import open_source
from llava_train.text.named_templates import make_template

KILLED = 10
MAKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_make_index
test_make_index.made(Path(sys.argv[2]), Path(sys.argv[3]), num_workers=2)
"""


def reading(root: Path, tokenizer) -> Reading:
    geometry = OneVisionGeometry(32, 8, "square", (), 1)
    media = MediaReader(geometry, VideoReader(VideoConfig(1.0, 4), 60, 10**6), Limits(10**6))
    encoder = Encoder(tokenizer, 151646, 151647, make_template("qwen", "clean", "front"), 1024)
    return Reading(encoder, media, MediaRoots(root, root))


def made(file: Path, cache: Path, num_workers: int = 0, tokenizer=None) -> Index:
    if tokenizer is None:
        from transformers import AutoTokenizer

        from llava_train.text.placeholders import prepare_tokenizer

        tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "golden" / "qwen2_tokenizer")
        prepare_tokenizer(tokenizer, 151646, 151647)
    return load_index(open_source(file, "many"), reading(file.parent, tokenizer), "one", num_workers, cache)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("many") / "many.jsonl"
    with file.open("w") as lines:
        for i in range(12 * make_index.CHUNK):
            turns = [{"from": "human", "value": f"What is {i}?"}, {"from": "gpt", "value": "A number. " * (i % 9 + 1)}]
            lines.write(json.dumps({"id": f"r{i}", "conversations": turns}) + "\n")
    return file


def same(one: Index, other: Index) -> bool:
    names = ("offsets", "sizes", "text_tokens", "supervised", "media_starts", "cut_starts")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def maker(file: Path, cache: Path, tokenizer) -> int:
    """A process that makes the index, with a group of its own; forked, so that no import takes its time."""
    if process := os.fork():
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        made(file, cache, 2, tokenizer)
        code = 0
    finally:
        os._exit(code)


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and path.suffix != ".part"]


def test_killing_its_maker_at_any_moment_leaves_no_wrong_index(many, tokenizer, tmp_path):
    """Kills the whole group of processes; between the kills nothing but a whole index may be found."""
    right = made(many, tmp_path / "right", tokenizer=tokenizer)
    cache, draw = tmp_path / "cache", random.Random(7)
    began = time.monotonic()
    assert os.waitpid(maker(many, tmp_path / "timed", tokenizer), 0)[1] == 0  # how long an unbroken one takes
    whole = time.monotonic() - began
    unfinished = 0
    for _ in range(KILLED):
        for path in folders(cache) if cache.exists() else ():
            path.rename(tmp_path / f"seen-{len(list(tmp_path.iterdir()))}")
        process = maker(many, cache, tokenizer)
        time.sleep(draw.uniform(0.05, 0.9) * whole)
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        unfinished += not folders(cache)
        assert all(same(Index(folder), right) for folder in folders(cache))
    assert unfinished  # else no kill came in time
    assert same(made(many, cache, tokenizer=tokenizer), right)
    assert not list(cache.glob("*.part"))


def test_processes_that_ask_at_once_make_it_once(many, tmp_path):
    command = [sys.executable, "-c", MAKER, str(Path(__file__).parent), str(many), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 2
    assert len(folders(tmp_path / "cache")) == 1
    assert sum("waiting for another process that indexes many" in text for text in told) >= 1
    assert sum("indexing many" in text for text in told) == 1


@pytest.mark.parametrize("spoil", [lambda rows: rows.write_bytes(rows.read_bytes()[:-100]), lambda rows: rows.unlink()])
def test_a_damaged_index_is_made_anew(many, tokenizer, tmp_path, spoil, capsys):
    right = made(many, tmp_path / "right", tokenizer=tokenizer)
    made(many, tmp_path / "cache", tokenizer=tokenizer)
    spoil(next((tmp_path / "cache").glob(f"*/{ROWS}")))
    assert same(made(many, tmp_path / "cache", tokenizer=tokenizer), right)
    assert "damaged, made anew" in capsys.readouterr().err


def test_processes_and_one_alone_find_the_same(many, tokenizer, tmp_path):
    one, two = (made(many, tmp_path / str(n), n, tokenizer) for n in (1, 2))
    assert same(one, two)
    assert len(one) == 12 * make_index.CHUNK
    assert json.loads(one.record(700).content)["id"] == "r700"
    assert one.text_tokens[1] < one.text_tokens[8]


def test_a_process_that_is_ended_from_outside_is_told(many, tokenizer, tmp_path, monkeypatch):
    from llava_train.shared.errors import RunError

    monkeypatch.setattr(Reading, "rows", lambda *_: os._exit(9))
    with pytest.raises(RunError, match="ended from outside"):
        made(many, tmp_path / "cache", 1, tokenizer)
    assert not folders(tmp_path / "cache")


def test_a_file_that_the_system_denies_is_one_bad_record_at_every_start(tokenizer, tmp_path, monkeypatch):
    stat = os.stat

    def denied(path, *args, **options):
        if str(path).endswith("locked/1.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", denied)
    asked = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "It."}]
    paths = ["locked/1.png", "A" * 9000]
    (tmp_path / "a.json").write_text(json.dumps([{"image": path, "conversations": asked} for path in paths]))
    for _ in range(2):
        index = made(tmp_path / "a.json", tmp_path / "cache", tokenizer=tokenizer)
        one, other = (index.refusal(position, "many") for position in range(2))
        assert (one.reason, other.reason) == ("unreadable image", "bad record")
        assert one.detail.endswith("locked/1.png: Permission denied")
        assert len(other.detail) < 200
