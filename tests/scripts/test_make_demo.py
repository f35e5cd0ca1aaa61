"""data/scripts/make_demo.py, with few lists and clips."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from PIL import Image

from llava_train.data.samples.parse import MediaRoots, to_sample


def records(folder: Path, name: str) -> list[dict]:
    found = json.loads((folder / name).read_text())
    assert found
    return found


def media(record: dict) -> list[str]:
    found = record.get("image") or record.get("video") or []
    return [found] if isinstance(found, str) else found


@pytest.mark.parametrize(
    ("questions", "attributes"),
    [
        ([("is there a red shape?", "yes", 1), ("what shape is present?", "circle", 1)], {1: ("red", "circle")}),
        ([("is there not a teal shape?", "no", 2), ("is no triangle present?", "no", 2)], {2: ("teal", "triangle")}),
        ([("what is the green shape?", "rectangle", 3)], {3: ("green", "rectangle")}),
        ([("is there a red shape?", "no", 4), ("is there not a circle?", "yes", 4)], {}),
        ([("what color is the shape?", "blue", 5)], {}),
    ],
)
def test_attributes_are_those_that_the_questions_name(script: ModuleType, questions: list, attributes: dict):
    assert script.shape_attributes(questions) == attributes


def test_training_and_held_out_records_share_no_picture(folder: Path):
    names = sorted(path.name for path in folder.glob("*.json") if path.name != "made_by.json")
    assert len(names) == 7
    train = {name for file in names for record in records(folder, file) for name in media(record)}
    tests = [f"heldout/{task}.json" for task in ("shapes", "multi_image", "video")]
    held_out = {name for file in tests for record in records(folder, file) for name in media(record)}
    assert {name.split("/")[1] for name in train} == {"train"}
    assert {name.split("/")[1] for name in held_out} == {"test"}
    pictures = {part: {p.read_bytes() for p in folder.glob(f"*/{part}/*.png")} for part in ("train", "test")}
    assert not pictures["train"] & pictures["test"]


def test_held_out_digits_come_from_the_last_twenty_columns(script: ModuleType, folder: Path):
    columns = {int(path.stem.split("_")[1]) % 100 for path in (folder / "digits" / "test").iterdir()}
    assert columns == set(range(80, 100))
    sheet = np.asarray(Image.open(script.DIGITS_PNG).convert("L"))
    assert sheet[5 * 7 * 20 : (5 * 7 + 1) * 20, 85 * 20 : 86 * 20].max() > 0  # row 35, column 85: a seven
    shown = np.asarray(Image.open(folder / "digits" / "test" / "7_085.png"))
    assert shown.shape == (64, 64, 3)
    assert not shown[:4].any()
    assert not shown[:, 60:].any()


def test_every_record_is_a_sample_whose_media_exist(folder: Path):
    for file in [*folder.glob("*s.json"), *folder.glob("text.json"), *folder.glob("heldout/*.json")]:
        for position, record in enumerate(records(file.parent, file.name)):
            sample = to_sample(record, file.stem, position, MediaRoots(folder))
            assert all(medium.file.is_file() for medium in sample.media())


def test_lists_name_the_digits_in_the_order_of_the_pictures(folder: Path):
    for file in ("digit_lists.json", "heldout/multi_image.json"):
        for record in records(folder, file):
            digits = [Path(name).stem[0] for name in record["image"]]
            assert record["conversations"][-1]["value"] == " ".join(digits)
            assert len(set(digits)) == 4


def test_held_out_clip_shows_four_pictures_for_eight_frames_each(folder: Path):
    record = records(folder, "heldout/video.json")[0]
    with av.open(str(folder / record["video"])) as container:
        assert container.streams.video[0].average_rate == 8
        frames = np.stack([frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)])
    assert frames.shape == (32, 64, 64, 3)
    shown = frames.reshape(4, 8, -1)
    assert np.abs(shown - shown[:, :1]).mean() < 1.5
    assert min(np.abs(shown[k] - shown[k + 1]).mean() for k in range(3)) > 10


def test_same_seed_draws_the_same_lists_and_clips(script: ModuleType, tmp_path: Path):
    cells = {d: [f"{d}.png"] for d in range(10)}
    for digit in cells:
        Image.new("RGB", (64, 64), (25 * digit, 0, 0)).save(tmp_path / f"{digit}.png")

    def drawn(seed: int, split: str) -> tuple[list[str], list[bytes]]:
        made = script.digit_videos(split, cells, 3, random.Random(seed), tmp_path, script.training_pace)
        answers = [record["conversations"][-1]["value"] for record in made]
        return answers, [(tmp_path / record["video"]).read_bytes() for record in made]

    assert drawn(3, "a") == drawn(3, "b")
    assert drawn(3, "c") != drawn(4, "d")


def test_folder_is_whole_or_absent_and_made_once(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "data"
    made = []

    def make(folder: Path, seed: int) -> None:
        made.append(seed)
        (folder / "some.json").write_text("[]")
        if len(made) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(script, "make", make)
    monkeypatch.setattr(sys, "argv", ["make_demo.py", "--out", str(out), "--seed", "5"])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert not out.exists()
    script.main()
    script.main()
    assert made == [5, 5]
    assert (out / "some.json").is_file()
    assert not list(tmp_path.glob("*.partial"))
