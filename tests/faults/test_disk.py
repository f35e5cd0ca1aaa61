"""A disk that is full or may not be written: the run says so, ends with 2, and leaves the last whole checkpoint."""

import os
import resource
import subprocess

import pytest
from jobs import STAGE, Job, assert_identical, step_folders, zero

SETTINGS = (zero(1),)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")


def assert_sound(folder) -> None:
    """Two checkpoints and nothing half written."""
    assert len(step_folders(folder)) == 2
    assert not list((folder / STAGE).glob("step-*.partial"))


def mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr}")


@pytest.fixture
def small_disk(tmp_path):
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path)
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_write_that_fails_ends_the_run_and_leaves_the_last_checkpoint(tmp_path, unbroken, num_ranks):
    job = Job(tmp_path, *SETTINGS, num_ranks=num_ranks)
    job.wait_for_step(4)
    [optimizer] = step_folders(tmp_path)[-1].glob(f"optimizer-{num_ranks - 1:05d}-*")
    limit = optimizer.stat().st_size // 2
    resource.prlimit(job.ranks[-1].pid, resource.RLIMIT_FSIZE, (limit, limit))  # of one rank alone
    job.end(*(2,) * num_ranks)
    for rank in range(num_ranks):
        told = " ".join(job.out(rank).split())
        assert f"cannot be written: rank {num_ranks - 1}: [Errno 27] File too large" in told
        assert f"{step_folders(tmp_path)[-1].name} is the last whole checkpoint" in told
        assert "Traceback" not in told
    assert_sound(tmp_path)
    Job(tmp_path, *SETTINGS, num_ranks=num_ranks).end()
    assert_identical(tmp_path, unbroken(*SETTINGS, num_ranks=num_ranks))


@as_root
def test_a_full_disk_is_told_and_told_again_before_the_next_start(small_disk, unbroken):
    folder, ballast = small_disk / "run", small_disk / "ballast"
    job = Job(folder, *SETTINGS)
    job.wait_for_step(4)
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:  # noqa: PT012
        while True:
            file.write(bytes(2**12))
    told = " ".join(job.end(2).split())
    assert "No space left on device" in told
    assert "Traceback" not in told
    assert step_folders(folder)
    told = " ".join(Job(folder, *SETTINGS).end(2).split())
    assert "No space left on device" in told or "are free" in told
    assert "Traceback" not in told
    ballast.unlink()
    Job(folder, *SETTINGS).end()
    assert_identical(folder, unbroken(*SETTINGS))


@as_root
def test_a_folder_that_may_not_be_written_is_told(tmp_path, unbroken):
    folder = tmp_path / "run"
    job = Job(folder, *SETTINGS)
    job.wait_for_step(4)
    job.kill()
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        told = " ".join(Job(folder, *SETTINGS).end(2).split())
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert "Read-only file system" in told
    assert "run.dir" in told
    assert "Traceback" not in told
    Job(folder, *SETTINGS).end()
    assert_identical(folder, unbroken(*SETTINGS))
