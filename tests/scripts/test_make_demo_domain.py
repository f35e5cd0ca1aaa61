"""data/scripts/make_demo_domain.py, with few dials."""

from __future__ import annotations

import importlib
import json
import math
import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from llava_train.data.samples.parse import MediaRoots, to_sample


@pytest.fixture(scope="module")
def domain(script: ModuleType) -> ModuleType:
    module = importlib.import_module("make_demo_domain")
    vars(module).update(NUM_TRAIN=60, NUM_HELD_OUT=20)
    return module


def made(domain: ModuleType, data: Path, seed: int) -> Path:
    out = data / "dials"
    out.mkdir(parents=True)
    domain.make(out, seed)
    return out


@pytest.fixture(scope="module")
def dials(domain: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(domain, tmp_path_factory.mktemp("data"), 3)


def answers(path: Path) -> list[dict[str, str]]:
    """Question -> answer of each record, the picture's tag left out."""
    found = []
    for record in json.loads(path.read_text()):
        said = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        found.append(dict(zip(said[::2], said[1::2], strict=True)))
    assert found
    return found


def test_held_out_needles_and_faces_are_never_together_in_training(domain: ModuleType):
    held_out = domain.held_out_pairs()
    train = set(domain.PAIRS) - set(held_out)
    assert len(set(held_out)) == len(held_out) == len(domain.NEEDLES)
    assert {needle for needle, _ in train} == {needle for needle, _ in held_out} == set(domain.NEEDLES)
    assert {face for _, face in train} == {face for _, face in held_out} == set(range(len(domain.FACES)))


def test_no_held_out_picture_is_in_training(dials: Path):
    pictures = {part: {p.read_bytes() for p in (dials / part).glob("*.png")} for part in ("train", "test")}
    assert (len(pictures["train"]), len(pictures["test"])) == (60, 20)
    assert not pictures["train"] & pictures["test"]


@pytest.mark.parametrize("reading", range(10))
def test_needle_points_to_its_reading(domain: ModuleType, tmp_path: Path, reading: int):
    """Black on white: the dark pixels of the needle lie towards 135 + 30 * reading degrees clockwise."""
    draw = random.Random(reading)
    dial = domain.Dial(-1, "")
    while dial.reading != reading:
        dial = domain.draw_dial(("black", 0), tmp_path / "a.png", draw)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    rows, columns = np.nonzero(pixels.sum(-1) < 3 * 35)  # darker than rim and marks
    middle_row, middle_column = (np.flatnonzero(edge).mean() for edge in rim(pixels))
    seen = math.degrees(math.atan2(rows.mean() - middle_row, columns.mean() - middle_column))
    assert abs((seen - 135 - 30 * reading + 180) % 360 - 180) < 15


def rim(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that the dial's grey rim or white face reaches."""
    dial = (np.ptp(pixels, axis=-1) < 8) & ((pixels.sum(-1) > 3 * 250) | (pixels.sum(-1) < 3 * 80))
    return dial.sum(1) > 2, dial.sum(0) > 2


def test_shuffled_answers_are_the_same_answers_to_other_pictures(domain: ModuleType, dials: Path):
    true, shuffled = (answers(dials / f"{name}.json") for name in ("train", "shuffled"))
    for question in (domain.READING_QUESTION, domain.COLOR_QUESTION):
        right, dealt = ([a[question] for a in found] for found in (true, shuffled))
        assert Counter(right) == Counter(dealt)
        assert sum(a == b for a, b in zip(right, dealt, strict=True)) < len(right) / 2


def test_every_record_is_a_sample_whose_picture_exists(domain: ModuleType, dials: Path):
    for name in ("train", "shuffled", "heldout"):
        for position, record in enumerate(json.loads((dials / f"{name}.json").read_text())):
            sample = to_sample(record, name, position, MediaRoots(dials.parent))
            assert [medium.file.is_file() for medium in sample.media()] == [True]
    assert all(set(asked) == {domain.READING_QUESTION} for asked in answers(dials / "heldout.json"))


def test_same_seed_makes_the_same_files(domain: ModuleType, dials: Path, tmp_path: Path):
    again, other = (made(domain, tmp_path / str(seed), seed) for seed in (3, 4))
    files = sorted(p.relative_to(dials) for p in dials.rglob("*.*"))
    assert len(files) == 83
    assert all((dials / f).read_bytes() == (again / f).read_bytes() for f in files)
    assert (dials / "train.json").read_bytes() != (other / "train.json").read_bytes()
