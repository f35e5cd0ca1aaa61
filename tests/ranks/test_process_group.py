import os
import signal

import pytest
import runs
from runs import free_port

from llava_train.ranks.process_group import _connecting, allocator_defaults, shared_gpus
from llava_train.shared.errors import LostRankError, RunError


@pytest.mark.parametrize("waiting_in", ["barrier", "gather", "sum"])
def test_a_lost_rank_is_told_at_once_on_those_that_wait_for_it(waiting_in):
    first, lost, last = runs.start_apart(3, str(runs.WORKERS / "lost_rank_worker.py"), waiting_in)
    runs.finish(lost, code=-9, timeout=60)
    for process in (first, last):
        told = runs.finish(process, timeout=20)
        assert "TOLD another rank of this run is gone" in told
        assert "the same command continues from the last whole checkpoint" in told


def test_a_shell_that_takes_itself_for_a_task_says_what_it_waits_for(tmp_path):
    port = free_port()
    environ = os.environ | {"OMP_NUM_THREADS": "1"} | runs.rank_environ(0, 4, port)
    process = runs.start(1, *runs.training(tmp_path), env=environ)
    told = (
        f"waiting for 3 other ranks at 127.0.0.1:{port} (SLURM_NTASKS=4); in an interactive shell: unset SLURM_PROCID"
    )
    lines = iter(process.stdout.readline, "")
    assert any(told in line for line in lines)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in runs.finish(process, code=75, timeout=20)


@pytest.mark.parametrize(("launcher_s", "sets"), [({}, True), ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, False)])
def test_segments_grow_unless_the_user_says_how(launcher_s, sets):
    assert bool(allocator_defaults({"HOME": "/", **launcher_s})) == sets
    assert not allocator_defaults(allocator_defaults({}))


def test_ranks_that_share_a_gpu_are_named():
    assert shared_gpus([("n0", "a"), ("n0", "b"), ("n1", "c")]) == ""
    told = shared_gpus([("n0", "a"), ("n1", "b"), ("n0", "a")])
    assert told.startswith("one GPU is that of rank 0 on n0, 2 on n0\n    -> as many processes on a node")


@pytest.mark.parametrize(
    ("told", "kind"), [("Unable to find address for: ib7", RunError), ("Connect timeout", LostRankError)]
)
def test_ranks_that_cannot_connect_are_told_the_variables(told, kind):
    with pytest.raises(kind, match=f"{told[:20]}.*\n    -> .*GLOO_SOCKET_IFNAME=NAME") as raised, _connecting():
        raise RuntimeError(f"[gloo] {told}\nframe #0")
    assert type(raised.value) is kind
