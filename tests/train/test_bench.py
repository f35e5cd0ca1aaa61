"""What `bench` says: figures that fit each other, products that are those of the FLOPs, nothing written but indexes."""

from __future__ import annotations

import json

import pytest

from llava_train.cli.main import main
from llava_train.config.load import load
from llava_train.costs.dims import KNOWN_DIMS
from llava_train.costs.flops import sample_cost
from llava_train.train.bench import products_of


def test_bench_tells_figures_that_fit_each_other_and_saves_nothing(capsys, tmp_path):
    words = ["bench", "+recipe=tiny", f"run.dir={tmp_path}/run", "bench.steps=2", "bench.warmup=1"]
    words.append(f"bench.profile={tmp_path}/profile/trace.json")
    assert main(words) == 0
    told = capsys.readouterr().out
    speed = json.loads(told.splitlines()[-1])
    assert "waits for data" in told
    assert speed["stage"] == "onevision"
    assert speed["seconds_per_step"] * speed["samples_per_second"] == pytest.approx(4)
    seconds = 2 * speed["seconds_per_step"]
    assert speed["mfu"] == pytest.approx(speed["flops"] / seconds / speed["products"])
    assert speed["hfu"] > speed["mfu"] > 0  # the stage recomputes
    assert 0 <= speed["data_wait"] < 1
    assert all(seconds > 0 for seconds in speed["parts"].values())
    assert {event["name"] for event in json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]} > {
        "aten::mm"
    }
    assert "aten::mm" in (tmp_path / "profile/trace.json.txt").read_text()
    assert not [*(tmp_path / "run").rglob("step-*"), *(tmp_path / "run").rglob("hf")]


def test_products_are_the_flops_of_the_model_without_attention_and_patches():
    dims = KNOWN_DIMS["Qwen/Qwen2-0.5B-Instruct"]
    cost = sample_cost(dims, load(["+recipe=ov_stage", "model=onevision_0_5b"]).stages["onevision"])
    flops = sum(6 * rows * width * out * number for (rows, width, out), number in products_of(dims, 100, 0, 7).items())
    assert flops == pytest.approx(cost.token * 100 + cost.label * 7)
    tiles = sum(6 * rows * width * out * number for (rows, width, out), number in products_of(dims, 0, 1, 0).items())
    assert 0.8 * cost.tile < tiles < cost.tile
