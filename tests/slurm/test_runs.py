"""What ends a job before its end, on real SLURM: the run goes on with the losses of one that nothing disturbed."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from cluster import USER_SIGNAL
from runs import metrics
from submitted import NUM_STEPS, STAGE, Job, losses

pytestmark = pytest.mark.slurm
RARELY = f"stages.{STAGE}.checkpoint.every=50"  # what is saved was saved for a signal


def goes_on(job: Job, unbroken: list[float], *outcomes: str) -> None:
    """It ends well after these segments, each step as in the unbroken run, and started once for each."""
    job.end()
    assert job.outcomes() == [*outcomes, "done"], job.logs()
    assert losses(job.run) == unbroken
    assert int(job.field("Restarts")) == len(outcomes)


def test_end_to_end_on_two_nodes(cluster, tmp_path, unbroken):
    job = Job(cluster, tmp_path / "run")
    goes_on(job, unbroken)
    assert [log.name for log in sorted((job.run / "segments/0001").iterdir())] == [
        "rank-0000.log",
        "rank-0001.log",
        "srun.log",
    ]
    assert f"step {NUM_STEPS}/{NUM_STEPS}" in job.out()
    done = subprocess.run(
        [sys.executable, "-m", "llava_train", "status", f"run.dir={job.run}"],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["state"], told["step"], told["num_steps"], told["restarts"]) == ("finished", NUM_STEPS, NUM_STEPS, 0)
    assert told["segments"][0]["tokens_per_second"] > 0


@pytest.mark.parametrize("user_signal", ["", USER_SIGNAL])
def test_preempted_within_the_grace_time(cluster, tmp_path, unbroken, user_signal):
    cluster.configure(user_signal)
    job = Job(cluster, tmp_path / "run", RARELY)
    with job.held(3):
        cluster.run("sbatch", "--nodes=3", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap=true")
        job.wait(lambda: "SIGUSR1" in job.out() or job.outcomes() != ["running"])
    goes_on(job, unbroken, "stopped")
    assert 3 <= job.segments()[0]["reached"][1] < NUM_STEPS


def test_taken_without_grace_it_goes_on_from_the_last_checkpoint(cluster, tmp_path, unbroken):
    cluster.configure(kill_wait=1)
    job = Job(cluster, tmp_path / "run", options=("--nodes=2", "--partition=hasty"))
    with job.held(3, rank=1):
        os.kill(job.rank(0), signal.SIGSTOP)
        cluster.run("sbatch", "--nodes=3", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap=true")
        job.wait(lambda: int(job.field("Restarts")))
    goes_on(job, unbroken, "stopped")


def test_time_limit(cluster, tmp_path, unbroken):
    job = Job(cluster, tmp_path / "run", RARELY, options=("--nodes=2", "--signal=B:USR1@170"))
    with job.held(3):
        job.bring_limit_near(180)
    goes_on(job, unbroken, "stopped")
    assert job.segments()[0]["reason"] == "stopped and saved, after SIGUSR1"


def test_time_limit_that_leaves_no_time_to_save(cluster, tmp_path, unbroken):
    job = Job(cluster, tmp_path / "run", options=("--nodes=2", "--signal=B:USR1@50"))
    with job.held(3):
        job.bring_limit_near(60)
        job.wait(lambda: job.outcomes() != ["running"])
    goes_on(job, unbroken, "stopped")
    assert job.segments()[0]["reason"] == "too little time to save, after SIGUSR1"


def test_a_cancelled_job_stays_so(cluster, tmp_path):
    job = Job(cluster, tmp_path / "run", RARELY)
    with job.held(3):
        cluster.run("scancel", job.id)
        cluster.wait_until(lambda: job.outcomes() != ["running"])
    job.end("CANCELLED")
    cluster.wait_until(lambda: not cluster.run("squeue", "--noheader"))
    assert job.field("Restarts") == "0"
    assert job.segments()[0]["reached"][1] >= 3


def test_a_killed_rank(cluster, tmp_path, unbroken):
    job = Job(cluster, tmp_path / "run")
    with job.held(3):
        os.kill(job.rank(1), signal.SIGKILL)
    goes_on(job, unbroken, "failed")
    assert job.segments()[0]["reason"] == "rank 1 on n1: Killed"


def test_a_lost_node(cluster, tmp_path, unbroken):
    job = Job(cluster, tmp_path / "run")
    with job.held(3):
        cluster.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
        job.wait(lambda: job.outcomes() != ["running"])
    goes_on(job, unbroken, "failed")
    assert job.segments()[0]["reason"] == "lost node n1"
    assert job.segments()[1]["nodes"] == "n[0,2]"
    assert job.field("ExcNodeList") == "n1"


def test_a_hanging_rank(cluster, tmp_path, unbroken):
    job = Job(cluster, tmp_path / "run", RARELY, "train.max_wait=15")  # saves may take longer
    job.wait(lambda: len(metrics(job.run)) >= 3)
    os.kill(job.rank(1), signal.SIGSTOP)
    goes_on(job, unbroken, "failed")
    first = job.run / STAGE / "stacks/rank-0000.txt"
    assert "train_step" in first.read_text() or "meet" in first.read_text()


def test_three_submissions_at_once_train_one_run(cluster, tmp_path):
    jobs = [Job(cluster, tmp_path / "run", options=("--nodes=1",)) for _ in range(3)]
    cluster.wait_until(lambda: sum(job.field("JobState") == "FAILED" for job in jobs) == 2)
    [trains] = [job for job in jobs if job.field("JobState") != "FAILED"]
    for job in jobs:
        if job is not trains:
            assert job.field("ExitCode") == "2:0"
            assert f"is being trained by job {trains.id} on n" in job.out()
    trains.end()
    assert trains.outcomes() == ["done"]
    assert len(losses(trains.run)) == NUM_STEPS


def test_what_the_user_must_mend_is_not_requeued(cluster, tmp_path):
    wrong = Job(cluster, tmp_path / "a/run", "stages.onevision.max_stepz=3")
    absent = Job(cluster, tmp_path / "b/run", "data.root=/nowhere")
    wrong.end("FAILED")
    assert "max_stepz" in wrong.out()
    assert not wrong.segments()
    absent.end("FAILED")
    assert absent.outcomes() == ["refused"]
    assert re.search(r"not requeued: rank \S+ on \S+ ended with code 2: its log says what to mend", absent.out())
    assert {wrong.field("Restarts"), absent.field("Restarts")} == {"0"}


def test_failures_without_progress_end_the_job(cluster, tmp_path):
    job = Job(cluster, tmp_path / "run", RARELY)
    for segment in (1, 2):
        job.wait(lambda n=segment: len(job.segments()) == n and job.rank(1))
        os.kill(job.rank(1), signal.SIGKILL)
    job.end("FAILED")
    assert job.outcomes() == ["failed", "failed"]
    assert "not requeued: 2 failures without a new checkpoint" in job.out()
