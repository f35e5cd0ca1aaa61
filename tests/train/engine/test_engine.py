"""The engine at every ZeRO level against AdamW by hand, micro-batches varying from step to step."""

import json
import sys

import engine_worker
import pytest
import torch

from llava_train.train.engine.engine import host_threads, place_buffers

FP32 = ["0,0,fp32", "1,0,fp32", "2,0,fp32", "3,0,fp32", "2,1,fp32", "3,1,fp32"]
BF16 = ["0,0,bf16", "1,0,bf16", "2,0,bf16", "3,0,bf16", "3,1,bf16"]


def by_hand() -> dict:
    """The same steps on whole global batches: torch's AdamW, clipping by the global norm."""
    toy = engine_worker.Toy()
    optimizer = torch.optim.AdamW(engine_worker.make_groups(toy), betas=(0.9, 0.98), eps=1e-8)
    losses, norms, part_norms = [], [], {}
    for i, step in enumerate(engine_worker.make_steps()):
        for group in optimizer.param_groups:
            group["lr"] = engine_worker.RATES[group["name"]] * (1 - i / 10)
        loss = toy(engine_worker.Rows(step)) / (3 * len(step))
        loss.backward()
        part_norms = part_norms or {
            name: float(torch.cat([p.grad.flatten() for p in getattr(toy, name).parameters()]).norm())
            for name in engine_worker.RATES
        }
        norms.append(float(torch.nn.utils.clip_grad_norm_(toy.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    weights = {name: p.detach().flatten().tolist() for name, p in toy.named_parameters()}
    return {"losses": losses, "norms": norms, "part_norms": part_norms, "weights": weights}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_zero_level_equals_adamw_by_hand_and_skips_what_is_not_finite(torchrun, num_ranks):
    check_results(FP32 + BF16, torchrun(num_ranks, "engine_worker.py", *FP32, *BF16))


def check_results(everything: list[str], printed: str, fp32: float = 2e-6) -> None:
    """What engine_worker.py printed of `everything`, against the steps by hand; fp32: relative tolerance there."""
    expected = by_hand()
    assert max(expected["norms"]) > 1  # clipping is at work
    results = [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines() if line.startswith("RESULT ")]
    assert len(results) == len(everything)
    for words, result in zip(everything, results, strict=True):
        tolerance = fp32 if words.endswith("fp32") else 2e-2
        assert result["losses"] == pytest.approx(expected["losses"], rel=tolerance), words
        assert result["norms"] == pytest.approx(expected["norms"], rel=tolerance), words
        assert result["part_norms"] == pytest.approx(expected["part_norms"], rel=tolerance), words
        for bad in result["bad"]:
            assert bad == {"is_finite": False, "loss_is_finite": True, "is_unchanged": True}, words
        for name, weights in expected["weights"].items():
            assert result["weights"][name] == pytest.approx(weights, abs=tolerance), (words, name)
        assert result["left"] <= 0, f"{words}: a closed engine keeps {result['left']} bytes"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_holds_no_more_after_four_stages_than_after_one(torchrun):
    lines = torchrun(1, "memory_worker.py", "2", "3").splitlines()
    levels = [json.loads(line.removeprefix("HELD ")) for line in lines if line.startswith("HELD ")]
    assert len(levels) == 2
    for first, *_, last in levels:
        assert last - first < 9e6, "less than the weights of one of them"


def test_buffers_are_placed_where_the_batches_are():
    """`meta` stands in for a GPU; DeepSpeed leaves the buffers of a module alone that has shards already."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[1].register_buffer("absent", None)
    module[1].register_buffer("passing", torch.ones(3), persistent=False)
    place_buffers(module, torch.device("meta"))
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}


def test_ranks_share_the_cores_of_their_host(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert [host_threads(environ) for environ in ({}, {"LOCAL_WORLD_SIZE": "8"}, {"LOCAL_WORLD_SIZE": "100"})] == [
        64,
        8,
        1,
    ]
