"""A pack that the GPU cannot hold is named; under train.fit the run goes on with smaller ones, as if never broken."""

import json
import shlex

import pytest
import torch
from test_equivalence import SETTINGS, ZERO, outcome
from test_step import ALONE, make_batch

from llava_train.batch.packed import IGNORE_INDEX
from llava_train.config.load import load
from llava_train.costs.dims import read_dims
from llava_train.costs.flops import Recomputed
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config
from llava_train.shared.errors import RunError
from llava_train.train.checkpoint.state import StepCounts
from llava_train.train.run.pack_too_large import Fit, PackTooLarge
from llava_train.train.step import train_step

STAGE = "stages.onevision"
PACKS = f"{STAGE}.pack.max_tokens=1000 {STAGE}.pack.max_tiles=40 {STAGE}.checkpoint.every=2 train.fit=true"


class Full:
    """Stands in for an engine whose GPU is full."""

    def forward_backward(self, batch, num_supervised, is_last):
        raise torch.OutOfMemoryError


def make_fit(folder, *overrides, fit=False) -> Fit:
    settings = load(["+recipe=tiny", *overrides]).stages["onevision"]
    dims = read_dims(tiny_config(byte_tokenizer()))
    return Fit(folder, "onevision", settings, dims, Recomputed(), ALONE, fit)


def pack_out_of_memory(*names):
    batch = make_batch([IGNORE_INDEX, *range(1, 300)], names)
    with pytest.raises(PackTooLarge) as raised:
        train_step(Full(), [batch], StepCounts(1, 1, 1, 0, 0, False), ALONE)
    return raised.value.batch


def test_a_pack_that_does_not_fit_is_named_with_its_estimate_and_what_to_set(tmp_path):
    batch = pack_out_of_memory("a/1", "b/2")
    with pytest.raises(RunError) as raised:
        make_fit(tmp_path, f"{STAGE}.gradient_checkpointing=false").lower(batch, 6, pytest.fail)
    told = str(raised.value)
    assert "out of memory on rank 0 at step 7 of stage onevision" in told
    assert "2 samples, 300 tokens, 0 tiles: a/1, b/2" in told
    assert "GB for the pack" in told
    assert f"{STAGE}.gradient_checkpointing=true" in told
    assert f"{STAGE}.pack.max_tokens=150 {STAGE}.pack.max_tiles=32" in told, "no tiles to halve"
    assert "train.fit=true" in told


def test_no_budget_helps_a_pack_of_one_sample(tmp_path):
    with pytest.raises(RunError, match=rf"no pack is smaller than a sample.*{STAGE}\.max_length"):
        make_fit(tmp_path, fit=True).lower(pack_out_of_memory("a/1"), 0, pytest.fail)


@pytest.mark.parametrize(("num_ranks", "zero"), [(1, "zero2"), (2, "zero3")])
def test_a_run_that_lowers_its_packs_ends_as_one_with_small_ones(torchrun, tmp_path, num_ranks, zero):
    words = shlex.split(f"{SETTINGS} {ZERO[zero]} {PACKS}")
    small, lowered = tmp_path / "small", tmp_path / "lowered"
    no_limit, limit = ("100000", "0"), ("400", str(4 // num_ranks))
    torchrun(num_ranks, "fit_worker.py", *no_limit, f"run.dir={small}", *words)
    printed = torchrun(num_ranks, "fit_worker.py", *limit, f"run.dir={lowered}", *words)
    assert f"out of memory on rank {num_ranks - 1}" in printed
    assert "lowered by train.fit after step" in printed
    summary = json.loads((lowered / "onevision/finished.json").read_text())["summary"]
    [entry] = summary["lowered"]
    assert entry["pack"]["tokens"] > 400 >= entry["max_tokens"]
    assert summary["step"] == 4
    losses, weights = outcome(small)
    ours, exported = outcome(lowered)
    assert ours == pytest.approx(losses, rel=1e-5)
    for key, tensor in weights.items():
        torch.testing.assert_close(exported[key], tensor, rtol=0, atol=2e-6, msg=key)
