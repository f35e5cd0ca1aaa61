"""Bad samples in a real run: named and stopped at, or left out, counted and listed."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from llava_train.cli.main import main

TINY = Path(__file__).parents[2] / "data/tiny"
NO_PROJECTOR = ["~stages.projector", "data.num_workers=0", "stages.onevision.zero.level=0"]


@pytest.fixture
def bad(tmp_path):
    """Ten records: seven good; a missing file; an image that only decoding finds broken; two tags for one image."""
    root = tmp_path / "data"
    root.mkdir()
    shutil.copy(next((TINY / "images").glob("*.png")), root / "good.png")
    Image.effect_noise((90, 80), 90).convert("RGB").save(root / "cut.jpg", quality=95)
    (root / "cut.jpg").write_bytes((root / "cut.jpg").read_bytes()[:-900])
    media = ["good.png"] * 7 + ["missing.png", "cut.jpg", "good.png"]
    tags = ["<image>\n"] * 9 + ["<image>\n<image>\n"]
    records = [
        {
            "id": f"r{i}",
            "image": image,
            "conversations": [{"from": "human", "value": tag + "What?"}, {"from": "gpt", "value": "A disc."}],
        }
        for i, (image, tag) in enumerate(zip(media, tags, strict=True))
    ]
    (root / "bad.json").write_text(json.dumps(records))
    return [f"data.file={root / 'bad.json'}", f"data.root={root}", f"run.dir={tmp_path / 'run'}", *NO_PROJECTOR]


def test_error_policy_names_record_and_reason_before_training(bad, capsys, tmp_path):
    assert main(["+recipe=tiny", *bad]) == 2
    told = capsys.readouterr().err
    assert "record 7 (id r7): missing file" in told
    assert "record 9 (id r9): tag/media mismatch" in told
    assert "data.on_error=skip" in told
    assert not (tmp_path / "run/onevision/metrics.jsonl").exists()


def test_skip_policy_leaves_slots_empty_counts_and_lists(bad, capsys, tmp_path):
    overrides = ["data.on_error=skip", "stages.onevision.max_steps=2", "stages.onevision.global_batch_size=4"]
    assert main(["+recipe=tiny", *bad, *overrides]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for name in ("record 7 (id r7): missing file", "record 8 (id r8): unreadable image", "record 9 (id r9): tag/media"):
        assert name in told
    lines = [json.loads(line) for line in (tmp_path / "run/onevision/metrics.jsonl").read_text().splitlines()]
    assert sorted(line["num_samples"] for line in lines) == [3, 4]  # the broken one is replaced by no neighbour
    summary = json.loads((tmp_path / "run/onevision/finished.json").read_text())["summary"]
    assert [entry["record"] for entry in summary["skipped"]] == ["8 (id r8)"]
    assert len(summary["refused"]) == 2


def text_only(root: Path) -> list[str]:
    talk = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    (root / "text.json").write_text(json.dumps([{"id": i, "conversations": talk} for i in range(8)]))
    return [f"data.file={root / 'text.json'}", f"data.root={root}", f"run.dir={root / 'run'}", "data.num_workers=0"]


def test_a_part_without_gradient_stops_the_run_and_names_the_samples(tmp_path, capsys):
    assert main(["+recipe=tiny", *text_only(tmp_path), "~stages.onevision"]) == 2
    assert "projector should train but got no gradient from: text/" in capsys.readouterr().err


def test_parts_that_no_sample_reaches_are_named_at_the_end(tmp_path, capsys):
    assert main(["+recipe=tiny", *text_only(tmp_path), "~stages.projector", "stages.onevision.zero.level=0"]) == 0
    assert "projector, vision_tower learned nothing: no sample had an image or a video" in capsys.readouterr().out
