"""`kill -9` at random moments, in the middle of saves among them: the run ends bit for bit as if nothing had been."""

import random
import time

import pytest
from jobs import NUM_STEPS, PROJECTOR_ONLY, STAGE, Job, assert_identical, checkpoints, zero
from runs import metrics

BF16 = (f"stages.{STAGE}.precision=bf16",)
# ranks, settings
CASES = {
    "full-1": (1, ()),
    "projector-2-bf16": (2, PROJECTOR_ONLY + BF16),
    "full-2-bf16": (2, BF16),
    "projector-1": (1, PROJECTOR_ONLY),
}
SHORT = list(zip(range(4), CASES, strict=True))
LONG = [(level, case) for level in range(4) for case in CASES]


def disturb(folder, settings, num_ranks, num_kills, seed, unbroken) -> int:
    """Kills the run `num_kills` times, continuing it after each; returns how many of them were in a save."""
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(1, NUM_STEPS + 1), num_kills))
    in_saves = 0
    for life, step in enumerate(moments):
        in_background, in_save = bool(draw.getrandbits(1)), life % 2 == 0
        job = Job(folder, *settings, checkpoints(every=1, keep=2, background=in_background), num_ranks=num_ranks)
        partial = job.stage / f"step-{step:08d}.partial"
        # A save that passed unseen is answered at the end of its step.
        job.wait(lambda: (in_save and partial.exists()) or len(metrics(folder)) >= step + (in_save))  # noqa: B023
        if not in_save:
            time.sleep(draw.uniform(0, 0.2))
        job.kill()
        in_saves += any(job.stage.glob("step-*.partial"))
    Job(folder, *settings, num_ranks=num_ranks).end()
    assert_identical(folder, unbroken(*settings, num_ranks=num_ranks))
    print(f"seed {seed}: killed after steps {moments}, {in_saves} times in a save")
    return in_saves


@pytest.mark.parametrize(("level", "case"), SHORT)
def test_killed_twice_a_run_ends_as_if_unbroken(tmp_path, unbroken, level, case):
    num_ranks, settings = CASES[case]
    disturb(tmp_path, (*settings, zero(level)), num_ranks, 2, level, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "case"), LONG)
def test_killed_five_times_a_run_ends_as_if_unbroken(tmp_path, unbroken, level, case):
    num_ranks, settings = CASES[case]
    seed = random.randrange(10**6)
    assert disturb(tmp_path, (*settings, zero(level)), num_ranks, 5, seed, unbroken) > 0


def test_killed_before_its_first_checkpoint_a_run_begins_anew(tmp_path, unbroken):
    job = Job(tmp_path, zero(0))
    job.wait((job.stage / "base").exists)
    job.kill()
    Job(tmp_path, zero(0)).end()
    assert_identical(tmp_path, unbroken(zero(0)))
