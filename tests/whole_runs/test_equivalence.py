"""Packs, ranks, ZeRO level and offload change speed and memory, never the run: the tiny recipe's last stage, whole."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SETTINGS = (
    "stages.onevision.max_steps=4 stages.onevision.global_batch_size=9 stages.onevision.schedule.warmup_ratio=0 "
    "stages.onevision.optimizer.epsilon=1e-4 stages.onevision.optimizer.weight_decay=0.1 "
)
FOUR_PACKS = "stages.onevision.pack.max_tokens=400 stages.onevision.pack.max_tiles=12 "
ZERO = {
    f"zero{level}{name}": f"stages.onevision.zero.level={level} {offload}"
    for level, name, offload in [
        (0, "", ""),
        (1, "", ""),
        (2, "", ""),
        (3, "", ""),
        (2, "_offload", "stages.onevision.zero.offload_optimizer=true"),
        (3, "_offload", "stages.onevision.zero={offload_optimizer:true,offload_parameters:true}"),
    ]
}


def outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    lines = [json.loads(line) for line in (folder / "onevision/metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(folder / "onevision/hf/model.safetensors")


@pytest.fixture(scope="module")
def apart(tmp_path_factory, torchrun):
    """One process, one sample per micro-batch, no ZeRO."""
    folder = tmp_path_factory.mktemp("apart")
    one_each = "stages.onevision.pack.max_tokens=1 stages.onevision.pack.max_tiles=1"
    torchrun(1, "run_worker.py", f"run.dir={folder} {SETTINGS} {ZERO['zero0']} {one_each}")
    losses, weights = outcome(folder)
    assert len(losses) == 4
    assert losses[0] != losses[-1]
    return losses, weights


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_packs_ranks_and_zero_change_nothing(torchrun, tmp_path, apart, num_ranks):
    chosen = ZERO if num_ranks == 2 else {name: ZERO[name] for name in ("zero0", "zero3")}
    lines = [f"run.dir={tmp_path / name} {SETTINGS} {FOUR_PACKS} {zero}" for name, zero in chosen.items()]
    torchrun(num_ranks, "run_worker.py", *lines)
    for name in chosen:
        assert_same_outcome(outcome(tmp_path / name), apart, name)


def assert_same_outcome(found, expected, name: str) -> None:
    (ours, exported), (losses, weights) = found, expected
    assert ours == pytest.approx(losses, rel=1e-5), name
    assert exported.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(exported[key], tensor, rtol=0, atol=2e-6, msg=f"{name} {key}")
