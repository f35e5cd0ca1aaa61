"""A stage's data end to end on small files: index, order, packs, refusals, workers."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_train.config.schema import (
    CheckpointConfig,
    DataConfig,
    ImageConfig,
    LearningRates,
    OptimizerConfig,
    PackConfig,
    ScheduleConfig,
    StageConfig,
    VideoConfig,
    ZeroConfig,
)
from llava_train.costs.dims import KNOWN_DIMS
from llava_train.data.index import make_index
from llava_train.data.loading.stage_data import build_data
from llava_train.family.onevision.family import OneVision
from llava_train.shared.errors import DataError
from llava_train.text.chat_template import chat_template

TINY = Path(__file__).parents[3] / "data" / "tiny"
IMAGE = ImageConfig("anyres", [[1, 1], [1, 2], [2, 1], [2, 2]], 9)
STAGE = StageConfig(
    mixture="tiny",
    learning_rate=LearningRates("frozen", 1e-3, "frozen"),
    epochs=1,
    max_steps=0,
    global_batch_size=4,
    schedule=ScheduleConfig("cosine", 0.03),
    optimizer=OptimizerConfig(0.0, 0.9, 0.999, 1e-8, 1.0),
    template="qwen",
    label_rule="clean",
    tag_policy="front",
    max_length=1024,
    image=IMAGE,
    video=VideoConfig(2.0, 4),
    pack=PackConfig(400, 12),
    precision="fp32",
    zero=ZeroConfig(0, False, False),
    gradient_checkpointing=False,
    checkpoint=CheckpointConfig(0, 1, 0, "none", False, 0),
)
DATA = DataConfig(
    file="tiny.json",
    root=str(TINY),
    on_error="error",
    allow_missing_sources=False,
    num_workers=0,
    decode_timeout=60.0,
    max_pixels=10**6,
    max_frames=10**4,
    max_media=8,
    too_long="error",
    sizes="files",
    allow_outside_root=False,
    cache="",
)


DIMS = KNOWN_DIMS["Qwen/Qwen2-0.5B-Instruct"]


@pytest.fixture
def build(tokenizer, tmp_path):
    def make(data: DataConfig = DATA, stage: StageConfig = STAGE, rank: int = 0, world_size: int = 1, seed: int = 0):
        geometry = OneVision().geometry(32, 8, stage.image)
        return build_data(data, stage, "one", tokenizer, geometry, DIMS, seed, rank, world_size, tmp_path / "cache")

    return make


def copy_of_tiny(folder: Path) -> DataConfig:
    shutil.copytree(TINY, folder)
    return replace(DATA, file=str(folder / "tiny.json"), root=str(folder))


def documents(batches) -> dict[str, tuple]:
    """Ids, labels and tiles of each sample, whatever pack it came in."""
    found = {}
    for batch in (b for b in batches if b.sample_ids):  # a filler is of no sample
        visuals, tile = iter(batch.visuals), 0
        for name, start, stop in zip(batch.sample_ids, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            ids = batch.input_ids[start:stop]
            inside = int(((batch.visual_positions >= start) & (batch.visual_positions < stop)).sum())
            first = tile
            while inside:
                layout = next(visuals)
                inside -= layout.num_tokens
                tile += layout.num_tiles
            found[name] = (
                ids.tolist(),
                batch.labels[start:stop].tolist(),
                batch.pixel_values[first:tile].numpy().tobytes(),
            )
        assert tile == len(batch.pixel_values)
    return found


def test_an_epoch_sees_every_sample_once_and_keeps_the_small_last_step(build):
    data = build()
    assert (data.num_samples, data.steps_per_epoch, data.refused) == (17, 5, [])
    steps = list(data.step_batches(0, 5))
    names = [name for step in steps for batch in step.batches for name in batch.sample_ids]
    assert sorted(names) == sorted(f"tiny/{record['id']}" for record in json.loads((TINY / "tiny.json").read_text()))
    assert [sum(len(batch.sample_ids) for batch in step.batches) for step in steps] == [4, 4, 4, 4, 1]
    assert [(step.step, step.epoch) for step in steps] == [(i, 0) for i in range(5)]


def test_order_depends_on_seed_and_epoch_alone(build):
    def drawn(data, start, count):
        return [
            {name for batch in step.batches for name in batch.sample_ids} for step in data.step_batches(start, count)
        ]

    data = build()
    assert drawn(data, 5, 2) == drawn(build(), 5, 2)
    assert drawn(data, 0, 5) != drawn(data, 5, 5)
    assert drawn(data, 0, 5) != drawn(build(seed=1), 0, 5)
    assert drawn(data, 3, 4) == drawn(data, 3, 2) + drawn(data, 5, 2)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_same_step_in_equal_numbers_of_packs(build, world_size):
    alone = list(build().step_batches(0, 5))
    ranks = [list(build(rank=rank, world_size=world_size).step_batches(0, 5)) for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert len({len(part.batches) for part in parts}) == 1
        shared = [batch for part in parts for batch in part.batches if batch.sample_ids != ("filler/filler",)]
        assert documents(shared) == documents(whole.batches)
        assert sum(batch.num_supervised for batch in shared) == sum(batch.num_supervised for batch in whole.batches)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_change_nothing(build, num_workers):
    here = list(build().step_batches(2, 5))
    there = list(build(replace(DATA, num_workers=num_workers)).step_batches(2, 5))
    for one, other in zip(here, there, strict=True):
        assert (one.step, one.epoch) == (other.step, other.epoch)
        for a, b in zip(one.batches, other.batches, strict=True):
            assert a.visuals == b.visuals
            for name, value in vars(a).items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, getattr(b, name)), name


def test_repeat_and_sampling_of_a_mixture(build, tmp_path):
    mixture = tmp_path / "own.yaml"
    mixture.write_text(
        "sources:\n  a: {file: tiny.json, sampling: 'first:3', repeat: 2}\n  b: {file: tiny.json, sampling: 'last:1'}\n"
    )
    data = build(replace(DATA, file=str(mixture)))
    assert data.num_samples_by_source == {"a": 6, "b": 1}
    names = Counter(n for step in data.step_batches(0, 2) for batch in step.batches for n in batch.sample_ids)
    assert names == {f"a/image-{c}_disc": 2 for c in ("red", "green", "blue")} | {"b/middle": 1}


def spoil(data: DataConfig) -> None:
    """One bad record of each kind, beside the good ones."""
    root = Path(data.root)
    records = json.loads(Path(data.file).read_text())
    (root / "images" / "header.png").write_bytes(b"no image")
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    records += [
        {"id": "missing", "image": "images/none.png", "conversations": turns},
        {"id": "header", "image": "images/header.png", "conversations": turns},
        {"id": "count", "image": ["images/red_box.png"] * 2, "conversations": turns},
        {"id": "mute", "conversations": turns[:1]},
        {"id": "role", "conversations": [{"from": "narrator", "value": "x"}]},
        {"id": "long", "conversations": [{"from": "human", "value": "word " * 2000}, {"from": "gpt", "value": "a"}]},
        {"id": "film", "video": "clip2.mp4", "conversations": turns},
    ]
    Path(data.file).write_text(json.dumps(records))


REASONS = {
    "17 (id missing)": "missing file",
    "18 (id header)": "unreadable image",
    "19 (id count)": "tag/media mismatch",
    "20 (id mute)": "nothing supervised",
    "21 (id role)": "bad record",
    "22 (id long)": "longer than max_length",
    "23 (id film)": "missing file",
}


def test_skip_lists_bad_samples_and_error_names_them(build, tmp_path):
    data = copy_of_tiny(tmp_path / "tiny")
    spoil(data)
    stage_data = build(replace(data, on_error="skip"))
    assert {error.record: error.reason for error in stage_data.refused} == REASONS
    assert stage_data.num_samples == 17
    with pytest.raises(DataError, match=r"tiny, record 17 \(id missing\): missing file") as caught:
        build(data)
    assert "7 such samples: 2 missing file, 1 unreadable image" in str(caught.value)
    assert "also tiny, record 18 (id header): unreadable image" in str(caught.value)
    assert "data.on_error=skip" in str(caught.value)


@pytest.fixture
def written(monkeypatch):
    """A line for each index that is made."""
    lines, write = [], make_index._write
    monkeypatch.setattr(make_index, "_write", lambda *args: (lines.append(1), write(*args)))
    return lines


def test_texts_with_a_tag_are_counted_and_named(build):
    told = "<image> or <video> without a medium stays text in 1 samples, such as tiny, record 7 (id text-tag)"
    assert build().notes == [told]


def test_answers_before_the_first_question_are_counted_and_named(build, tmp_path):
    talk = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    opened = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "Hello."}, *talk]
    records = [{"conversations": [talk[1], *talk]}, {"conversations": talk}, {"id": "x", "messages": opened}]
    (tmp_path / "a.json").write_text(json.dumps(records))
    notes = build(replace(DATA, file=str(tmp_path / "a.json"))).notes
    told = "an answer before the first question is left out in 2 samples, such as a, record 0; a, record 2 (id x)"
    assert notes == [told]


def test_files_that_are_passed_over_are_told(build, tmp_path):
    data = copy_of_tiny(tmp_path / "data")
    (tmp_path / "data" / "frames" / "times.json").write_text("[]")
    (tmp_path / "data" / "frames" / ".thumb.png").write_text("hidden")
    told = "files that are no pictures are passed over among the frames of a video in 1 samples, such as tiny, record"
    assert build(data).notes[-1].startswith(told)
    pictures = tmp_path / "pictures"
    shutil.copytree(TINY / "images", pictures / "discs")
    (pictures / "list.md").write_text("discs")
    notes = build(replace(data, file=str(pictures), root=str(pictures))).notes
    assert notes == ["pictures: passed over 1 files that are neither pictures nor captions of one, such as list.md"]


def test_index_is_reused_until_something_changes(build, tmp_path, written):
    data = replace(copy_of_tiny(tmp_path / "tiny"), on_error="skip")
    build(data)
    build(data)
    assert len(written) == 1
    os.utime(data.file, (1, 1))
    build(data)
    assert len(written) == 2
    build(data, replace(STAGE, tag_policy="keep"))
    assert len(written) == 3


def test_one_index_serves_all_geometries_limits_seeds_and_lengths(build, written):
    stages = [
        replace(STAGE, max_length=900),
        replace(STAGE, global_batch_size=2),
        replace(STAGE, image=ImageConfig("square", [], 1)),
        replace(STAGE, video=VideoConfig(1.0, 2)),
    ]
    lengths = [build(stage=stage)._dataset._samples.sizes.lengths.sum() for stage in (STAGE, *stages)]
    build(replace(DATA, max_media=9, max_pixels=10**5, too_long="cut"), seed=3)
    assert len(written) == 1
    assert lengths[0] == lengths[1] == lengths[2]
    assert len({lengths[0], *lengths[3:]}) == 3


def test_refused_file_that_has_come_since_is_taken(build, tmp_path):
    data = replace(copy_of_tiny(tmp_path / "tiny"), on_error="skip")
    image = Path(data.root, "images", "red_box.png")
    image.rename(tmp_path / "aside.png")
    assert [error.reason for error in build(data).refused] == ["missing file"] * 3
    (tmp_path / "aside.png").rename(image)
    assert build(data).refused == []


def test_failed_index_leaves_nothing_behind(build, tmp_path, monkeypatch):
    monkeypatch.setattr(make_index, "_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_file_that_only_decoding_finds_bad_leaves_its_slot_empty(build, tmp_path):
    data = replace(copy_of_tiny(tmp_path / "tiny"), on_error="skip")
    image = Path(data.root, "images", "yellow_disc.png")
    image.write_bytes(image.read_bytes()[:-60])
    stage_data = build(data)
    assert stage_data.refused == []
    steps = list(stage_data.step_batches(0, 5))
    skipped = [error for step in steps for error in step.skipped]
    assert {(error.reason, error.record.split()[0]) for error in skipped} == {
        ("unreadable image", "3"),
        ("unreadable image", "9"),
    }
    names = [name for step in steps for batch in step.batches for name in batch.sample_ids if name != "filler/filler"]
    assert len(names) == 15
    with pytest.raises(DataError, match="unreadable image"):
        list(build(replace(data, on_error="error")).step_batches(0, 5))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_decoding_error_crosses_the_worker_whole(build, tmp_path, num_workers):
    data = replace(copy_of_tiny(tmp_path / "tiny"), num_workers=num_workers)
    stage_data = build(data)
    Path(data.root, "images", "red_disc.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"tiny, record \d+ \(id .*\): unreadable image"):
        list(stage_data.step_batches(0, 5))


def test_changed_size_is_refused(build, tmp_path):
    data = copy_of_tiny(tmp_path / "tiny")
    stage_data = build(data)
    Image.new("RGB", (9, 9)).save(Path(data.root, "images", "red_disc.png"))
    with pytest.raises(DataError, match="changed file"):
        list(stage_data.step_batches(0, 5))


def test_many_samples_are_indexed_by_processes_in_the_same_order(build, tmp_path):
    data = copy_of_tiny(tmp_path / "tiny")
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    records = [{"image": "images/red_disc.png", "conversations": turns} for _ in range(make_index.PARALLEL_ABOVE + 1)]
    records[700] = {"conversations": turns[:1]}
    Path(data.file).write_text(json.dumps(records))
    together = build(replace(data, on_error="skip", num_workers=2))
    assert [error.record for error in together.refused] == ["700"]
    sizes = together._dataset._samples.sizes
    shutil.rmtree(tmp_path / "cache")
    alone = build(replace(data, on_error="skip"))._dataset._samples.sizes
    for name, values in vars(sizes).items():
        assert np.array_equal(values, getattr(alone, name)), name
    assert together._dataset._samples.sample(700)[0].id == "701"


def test_system_and_mixed_media_samples_are_laid_out_in_reading_order(build):
    data = build(stage=replace(STAGE, global_batch_size=17))
    (step,) = data.step_batches(0, 1)
    names = {name: batch for batch in step.batches for name in batch.sample_ids}
    found = [data._dataset._samples.sample(i) for i in range(17)]
    samples = {sample.id: layouts for sample, layouts in found}
    assert [(layout.kind, layout.num_tokens) for layout in samples["both"]] == [("anyres", 88), ("video", 4 * 4 + 1)]
    assert [layout.kind for layout in samples["several"]] == ["padded"] * 3
    assert [layout.num_tiles for layout in samples["frames"]] == [3]
    assert set(names) == {f"tiny/{name}" for name in samples}


def test_a_changed_caption_makes_the_index_anew(build, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(TINY / "images", pictures / "sub")
    for picture in pictures.rglob("*.png"):
        picture.with_suffix(".txt").write_text("a")
    data = replace(DATA, file=str(pictures), root=str(tmp_path))
    stage = replace(STAGE, global_batch_size=64)

    def num_learned() -> int:
        (step,) = build(data, stage).step_batches(0, 1)
        return sum(int((batch.labels != -100).sum()) for batch in step.batches)

    before = num_learned()
    (pictures / "sub" / "red_box.txt").write_text("1234")
    assert num_learned() == before + 3


def test_another_chat_template_makes_the_index_anew(tokenizer, tmp_path):
    stage, own = replace(STAGE, template="checkpoint"), deepcopy(tokenizer)
    counts = []
    for system in ("Be short", "Be short", "Be long"):
        own.chat_template = chat_template("qwen", "front").replace("You are", system)
        build_data(DATA, stage, "one", own, OneVision().geometry(32, 8, IMAGE), DIMS, 0, 0, 1, tmp_path / "cache")
        counts.append(len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]))
    assert counts == [1, 1, 2]


def test_another_decoder_makes_another_index(build, tmp_path):
    for decoder, count in (("pyav", 1), ("decord", 2), ("pyav", 2)):
        build(replace(DATA, video_decoder=decoder))
        assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == count
