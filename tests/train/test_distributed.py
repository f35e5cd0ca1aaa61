from llava_train.train.distributed import slurm_environment


def test_srun_names_the_ranks():
    environ = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "MASTER_ADDR": "node0"}
    assert slurm_environment(environ) == {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


def test_a_shell_in_a_slurm_allocation_is_one_process_alone():
    assert slurm_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == {}
