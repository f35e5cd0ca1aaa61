"""What ended a segment, who may begin one, and when a run is given up. The messages are srun's own, of SLURM 22.05."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from llava_train.shared.errors import RunError
from llava_train.train.run import job_segments
from llava_train.train.run.status import status, status_text

ABORTED = "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\nsrun: forcing job termination\n"
NCCL = "Aborted (core dumped)"  # of survivors, after a time-out
BY_SRUN = "srun: First task exited 120s ago\nsrun: Terminating StepId=5.0\n"


def task(node: int, told: str) -> str:
    return f"srun: error: n{node}: task {node}: {told}\n"


def exited(node: int, code: int) -> str:
    return task(node, f"Exited with exit code {code}")


@pytest.mark.parametrize(
    ("log", "code", "outcome", "reason"),
    [
        ("", 0, "done", ""),
        ("", 75, "stopped", "stopped and saved"),
        (exited(0, 75) + exited(1, 75), 75, "stopped", "stopped and saved"),
        (ABORTED + exited(0, 75) + exited(1, 75), 75, "stopped", "stopped and saved"),
        (ABORTED, 0, "stopped", "ended by SLURM before it could save"),  # srun gives up with 0
        (ABORTED + task(0, "Killed") + task(1, "Killed"), 137, "stopped", "ended by SLURM before it could save"),
        ("", None, "stopped", "ended by SLURM before it could save"),
        (exited(0, 69) + task(1, "Killed"), 137, "failed", "rank 1 on n1: Killed"),
        (task(1, "Segmentation fault (core dumped)"), 139, "failed", "rank 1 on n1: Segmentation fault (core dumped)"),
        (exited(0, 1) + exited(1, 69), 69, "failed", "rank 0 on n0: Exited with exit code 1"),
        (exited(0, 69) + BY_SRUN + ABORTED + task(1, "Killed"), 137, "failed", "rank 1 on n1: Killed"),
        (exited(0, 70) + exited(1, 69), 70, "failed", "no step in time: rank 0 on n0; stacks in STAGE/stacks"),
        (exited(0, 69) + exited(1, 2), 69, "refused", "rank 1 on n1 ended with code 2: its log says what to mend"),
        (task(0, NCCL) + BY_SRUN + ABORTED + task(1, "Killed"), 137, "failed", "rank 1 on n1: Killed"),
        (task(0, NCCL) + exited(1, 1), 1, "failed", "rank 1 on n1: Exited with exit code 1"),
        (task(0, NCCL) + exited(1, 69), 134, "failed", "rank 0 on n0: Aborted"),
        (
            task(0, NCCL) + task(1, NCCL),
            134,
            "failed",
            "rank 0 on n0, rank 1 on n1: Aborted, as after an NCCL time-out",
        ),
        (task(0, NCCL) + exited(1, 70), 134, "failed", "no step in time: rank 1 on n1"),
        (task(0, NCCL) + exited(1, 2), 134, "refused", "rank 1 on n1 ended with code 2"),
        ("srun: error: Node failure on n1\n" + ABORTED, 0, "failed", "lost node n1"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=5.0\n" + task(0, "Killed"), 137, "refused", ""),
        ("srun: error: Unable to create step", 1, "failed", "srun ended with code 1"),
    ],
)
def test_what_ended_a_segment(log, code, outcome, reason):
    ending = job_segments.judge_ending(log, code)
    assert ending.outcome == outcome
    assert reason in ending.reason


def begin(run, job="5", restart=0, live=("5",), limit=2):
    return job_segments.begin(run, job, restart, "n[0-1]", live, limit)


def lose(logs, log: str, code: int = 137, heard: str = "") -> tuple[str, list[str]]:
    (logs / job_segments.SRUN).write_text(log)
    _, refusal, excluded = job_segments.end(logs, code, heard, 2)
    return refusal, excluded


def save(run, step: int) -> None:
    (run / f"stage/step-{step:08d}").mkdir(parents=True)


def test_of_many_at_once_one_begins(tmp_path):
    def one(job: str) -> str:
        try:
            return begin(tmp_path, job, live=list("0123456789")).name
        except RunError as error:
            return str(error)

    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(one, "0123456789"))
    assert told.count("0001") == 1
    winner = str(told.index("0001"))
    assert all(f"is being trained by job {winner} on n[0-1]" in line for line in told if line != "0001")


def test_a_segment_of_a_job_that_is_gone_or_requeued_is_closed(tmp_path):
    begin(tmp_path, "5")
    assert begin(tmp_path, "5", restart=1).name == "0002"
    assert begin(tmp_path, "6", live=["6"]).name == "0003"
    assert [s.outcome for s in job_segments.read_segments(tmp_path)] == ["stopped", "stopped", "running"]


def test_failures_without_a_new_checkpoint_end_the_job(tmp_path):
    killed = task(1, "Killed")
    assert lose(begin(tmp_path), killed) == ("", [])
    save(tmp_path, 4)
    first = begin(tmp_path, restart=1)
    save(tmp_path, 8)
    assert lose(first, killed)[0] == ""  # it came further
    assert lose(begin(tmp_path, restart=2), killed)[0] == ""
    assert lose(begin(tmp_path, restart=3), exited(0, 75), 75)[0] == ""  # stopped, which is no failure
    refusal, _ = lose(begin(tmp_path, restart=4), killed)
    assert refusal.startswith("2 failures without a new checkpoint:\n  segment 3, job 5: rank 1 on n1: Killed")
    with pytest.raises(RunError, match="2 failures without a new checkpoint"):
        begin(tmp_path, restart=5)
    assert begin(tmp_path, "6", live=["6"]).name == "0006"  # submitted anew


def test_stops_before_the_first_step_end_the_job(tmp_path):
    for restart in range(job_segments.MAX_STOPS - 1):
        assert lose(begin(tmp_path, restart=restart), exited(0, 75), 75)[0] == ""
    assert lose(begin(tmp_path), exited(0, 75), 75)[0].startswith("10 stops without a new checkpoint")


def test_a_node_is_left_out_when_it_is_lost_or_kills_twice(tmp_path):
    survivor = task(0, NCCL) + BY_SRUN
    ends = {
        survivor + task(1, "Killed"): [],
        task(0, NCCL) + task(1, NCCL): [],
        survivor + task(1, "Bus error"): ["n1"],
    }
    ends |= {"srun: error: Node failure on n0\n": ["n0", "n1"]}
    for restart, (log, excluded) in enumerate(ends.items()):
        logs = begin(tmp_path, restart=restart)
        save(tmp_path, restart + 1)  # it comes further each time
        assert lose(logs, log)[1] == excluded


def test_what_must_be_mended_is_not_requeued(tmp_path):
    refusal, _ = lose(begin(tmp_path), exited(0, 2), 2)
    assert "its log says what to mend" in refusal


def test_a_save_cut_off_by_the_time_limit_is_told(tmp_path):
    lose(begin(tmp_path), "", 137, "SIGUSR1")
    assert job_segments.read_segments(tmp_path)[0].reason == "too little time to save, after SIGUSR1"


def test_status_tells_segments_rates_and_time_left(tmp_path):
    logs = begin(tmp_path)
    (began,) = (s.began for s in job_segments.read_segments(tmp_path))
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage/config.yaml").write_text("stages: {stage: {}, next: {}}")
    line = {"num_tokens": 300, "seconds": 1.0, "stalled_seconds": 0.5, "loss": 2.0, "num_steps": 10, "time": began}
    lines = [line | {"step": 1, "time": began - 5}, line | {"step": 2}, line | {"step": 3}]
    (tmp_path / "stage/metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    save(tmp_path, 3)
    lose(logs, task(1, "Killed"))
    told = status(tmp_path)
    assert (told["state"], told["stages"], told["stages_finished"], told["restarts"]) == ("failed", 2, 0, 0)
    assert (told["step"], told["num_steps"], told["eta_seconds"]) == (3, 10, pytest.approx(7 * 1.5))
    assert told["checkpoint"]["folder"].endswith("stage/step-00000003")
    [segment] = told["segments"]
    assert (segment["steps"], segment["tokens_per_second"]) == (2, 200.0)  # 600 tokens in 3 s
    text = "\n".join(status_text(told))
    assert "stage stage: step 3 of 10, 0:00:10 left" in text
    assert "failed: rank 1 on n1: Killed" in text


def test_status_of_no_run_says_so(tmp_path):
    with pytest.raises(RunError, match=r"holds no STAGE/config\.yaml"):
        status(tmp_path)
