from pathlib import Path

import pytest
import runs

from llava_train.train.distributed import slurm_environment


def test_srun_names_the_ranks():
    environ = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "MASTER_ADDR": "node0"}
    assert slurm_environment(environ) == {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


def test_a_shell_in_a_slurm_allocation_is_one_process_alone():
    assert slurm_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == {}


@pytest.mark.parametrize("waiting_in", ["barrier", "gather", "sum"])
def test_a_lost_rank_is_told_at_once_on_those_that_wait_for_it(waiting_in):
    first, lost, last = runs.start_apart(3, str(Path(__file__).with_name("lost_rank_worker.py")), waiting_in)
    runs.finish(lost, code=-9, timeout=60)
    for process in (first, last):
        told = runs.finish(process, timeout=20)
        assert "TOLD another rank of this run is gone" in told
        assert "the same command continues from the last whole checkpoint" in told
