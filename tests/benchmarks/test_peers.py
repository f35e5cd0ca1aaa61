"""The comparison with other loops: each does the same work, on all kinds of samples, and one that does not is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_contenders_do_the_same_work_on_text_images_and_videos(tmp_path):
    words = ["--case", "mix", "--rounds", "1", "--steps", "2", "--folder", tmp_path, "--out", tmp_path / "out.json"]
    done = subprocess.run([sys.executable, "benchmarks/peers.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["mix"]
    assert found["wrong"] == []
    assert found["missing"] == {}
    assert list(found["rows"]) == ["ours", "single", "supervised"]
    records = json.loads((tmp_path / "small_mix/records.json").read_text())
    assert any("video" in record for record in records)
    assert any(len(record.get("image", [])) > 1 for record in records)
    for row in found["rows"].values():
        assert row["losses"] == pytest.approx(found["rows"]["ours"]["losses"], rel=1e-3)
        assert row["seconds"]["tokens"] > 0
        assert row["memory"] > 10**8
