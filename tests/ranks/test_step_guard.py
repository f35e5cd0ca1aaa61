"""Ranks that have different steps before them, or of which one does not come, end with its name."""

import time

import runs

WORKER = str(runs.WORKERS / "guard_worker.py")


def test_a_rank_that_plans_otherwise_is_named_on_all():
    for process in runs.start_apart(3, WORKER, "differ"):
        told = runs.finish(process, timeout=60)
        assert "TOLD the ranks disagree on what comes next" in told
        assert "rank 0, 2: step 13, micro-batches 4" in told
        assert "rank 1: step 13, micro-batches 5" in told
        assert "the same command continues" in told


def test_a_rank_that_does_not_come_is_named_with_its_last_step():
    processes = runs.start_apart(3, WORKER, "hang")
    try:
        began = time.monotonic()
        told = [runs.finish(processes[rank], timeout=60) for rank in (0, 2)]
        assert time.monotonic() - began < 60
    finally:
        runs.kill(processes[1])
    assert all("TOLD" in of_rank for of_rank in told)
    named = [of_rank for of_rank in told if "step 13: 1 of 3 ranks did not come within" in of_rank]
    assert named, told
    assert "rank 1: came to step 12 and not since" in named[0]
    assert "train.max_wait" in named[0]
