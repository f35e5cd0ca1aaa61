"""Stop signals to one process, to one of two ranks, to every process; a lost rank; nothing is left behind."""

import signal
import time
from pathlib import Path

import pytest
from jobs import STAGE, Job, assert_identical, step_folders, zero
from runs import metrics

from llava_train.ranks.signals import GRACE

RARELY = f"stages.{STAGE}.checkpoint.every=50"  # what is saved was saved for the signal


def stopped_step(folder, out: str) -> int:
    """The step that the run says it saved; it is on disk, and one step at most was begun after the signal."""
    assert "the same command continues" in out
    step = int(out.rpartition("stopped after step ")[2].partition(",")[0])
    assert [int(f.name[-8:]) for f in step_folders(folder)] == [step]
    assert len(metrics(folder)) == step
    return step


def alive(pids: list[int]) -> list[int]:
    """Those that run still; ended ones that nobody asked about do not count."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, stat in states.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_every_process_saves_the_step(tmp_path, unbroken, number):
    settings = (zero(1), RARELY)
    job = Job(tmp_path, *settings, "data.num_workers=1")
    job.wait_for_step(3)
    everything = job.everything()
    assert len(everything) > 1  # data workers and their video readers too
    job.signal(number, *everything)
    assert 3 <= stopped_step(tmp_path, job.end(75)) <= 6
    time.sleep(0.5)
    assert not alive(everything)
    assert "continued after step" in Job(tmp_path, *settings).end()
    assert_identical(tmp_path, unbroken(zero(1)))


def test_a_signal_to_one_of_two_ranks_stops_both(tmp_path, unbroken):
    job = Job(tmp_path, zero(3), RARELY, num_ranks=2)
    job.wait_for_step(3)
    job.signal(signal.SIGUSR1, job.ranks[1].pid)
    assert stopped_step(tmp_path, job.end(75, 75)) >= 3
    Job(tmp_path, zero(3), RARELY, num_ranks=2).end()
    assert_identical(tmp_path, unbroken(zero(3), num_ranks=2))


def test_a_second_signal_ends_a_rank_that_waits_for_another(tmp_path):
    job = Job(tmp_path, zero(1), num_ranks=2)
    job.wait_for_step(3)
    job.signal(signal.SIGSTOP, job.ranks[1].pid)
    first = job.ranks[0]
    job.signal(signal.SIGTERM, first.pid)
    time.sleep(GRACE + 0.5)
    assert first.is_alive()  # inside a collective, where the step cannot be finished
    job.signal(signal.SIGTERM, first.pid)
    first.join(5)
    assert first.exitcode == 128 + signal.SIGTERM
    job.kill()


def test_a_killed_rank_is_told_by_the_other_and_leaves_the_last_checkpoint(tmp_path, unbroken):
    job = Job(tmp_path, zero(2), num_ranks=2)
    job.wait_for_step(4)
    job.ranks[1].kill()
    told = job.end(69, -9, timeout=30)
    assert "another rank of this run is gone" in told
    assert "the same command continues from the last whole checkpoint" in told
    assert "Traceback" not in told
    assert len(step_folders(tmp_path)) == 2
    Job(tmp_path, zero(2), num_ranks=2).end()
    assert_identical(tmp_path, unbroken(zero(2), num_ranks=2))


def test_a_killed_run_leaves_no_process_behind(tmp_path):
    job = Job(tmp_path, zero(0), "data.num_workers=1")
    job.wait_for_step(3)
    everything = job.everything()
    assert len(everything) > 1  # data workers and their video readers too
    job.kill()
    deadline = time.monotonic() + 20
    while alive(everything):
        assert time.monotonic() < deadline
        time.sleep(0.05)
