"""A run goes on with another number of ranks, ZeRO level or offload: the same samples, losses equal to rounding."""

import pytest
from jobs import Job, counts, losses, zero

SPECS = {f"zero{level}": zero(level) for level in range(4)}
SPECS |= {f"zero{level}-offload": zero(level, offload=True) for level in (2, 3)}


def live(folder, *lives) -> None:
    """Each life: ranks, ZeRO, and the step after which it is killed; 0 = none, it runs to the end."""
    for num_ranks, spec, step in lives:
        job = Job(folder, SPECS[spec], num_ranks=num_ranks)
        if step:
            job.wait_for_step(step)
            job.kill()
        else:
            job.end()


def assert_agree(folder, unbroken) -> None:
    assert counts(folder) == counts(unbroken)
    assert losses(folder) == pytest.approx(losses(unbroken), rel=1e-5)


def test_ranks_level_and_offload_change_on_the_way(tmp_path, unbroken):
    live(tmp_path, (2, "zero2-offload", 3), (1, "zero0", 5), (4, "zero3", 7), (2, "zero1", 9), (1, "zero3-offload", 0))
    assert_agree(tmp_path, unbroken(SPECS["zero0"]))


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_saved_on_two_ranks_continued_on_one_and_four_and_back(tmp_path, unbroken, spec):
    live(tmp_path, (2, spec, 3), (1, spec, 6), (4, spec, 9), (2, spec, 0))
    assert_agree(tmp_path, unbroken(SPECS["zero0"]))


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_the_zero_level_changes_with_each_start(tmp_path, unbroken, spec):
    others = [other for other in SPECS if other != spec]
    for i, other in enumerate(others):
        live(tmp_path / other, (2, other, 3 + i), (2, spec, 0))
        assert_agree(tmp_path / other, unbroken(SPECS["zero0"]))
