"""What a launcher passes to a process: a place among the ranks, or a fault by the variable's name, never silence."""

import pytest

from llava_train.ranks.launcher import LAUNCHERS, SLURM, Launch, device_index, read_launch, take_local_rank
from llava_train.shared.errors import RunError

HERE = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **HERE}
TASK = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", **HERE}
SHELL = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # of sbatch and salloc


def without(environ, *names, **others):
    return {name: text for name, text in environ.items() if name not in names} | others


def mpi(rank, size, local):
    return {f"OMPI_COMM_WORLD_{name}": text for name, text in (("RANK", rank), ("SIZE", size), ("LOCAL_RANK", local))}


ALONE = {
    "nothing": {},
    "Kubeflow, one worker": {"RANK": "0", "WORLD_SIZE": "1", **HERE},
    "one rank that meets nobody": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    "left over": {"WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": " ", **HERE},
    "batch shell": {**SHELL, **HERE},
    "batch shell without a meeting point": SHELL,
    "batch shell of several tasks": {**SHELL, "SLURM_NTASKS": "8"},
    "srun --pty without a meeting point": {**SHELL, "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "4"},
    "srun of one task": {**SHELL, "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
    "mpirun of one": mpi("0", "1", "0"),
}
SEVERAL = {
    "torchrun": (TWO, (1, 2, 1)),
    "Kubeflow, two workers": (without(TWO, "LOCAL_RANK"), (1, 2, None)),
    "srun": (TASK, (3, 8, 1)),
    "srun without SLURM_STEP_ID": (without(TASK, "SLURM_STEP_ID"), (3, 8, 1)),
    "shell of several tasks with a meeting point": ({**SHELL, "SLURM_NTASKS": "4", **HERE}, (0, 4, 0)),
    "torchrun within srun": (TASK | TWO, (1, 2, 1)),
    "WORLD_SIZE exported for srun": ({**TASK, "WORLD_SIZE": "8"}, (3, 8, 1)),
    "mpirun": ({**mpi("1", "2", "1"), **HERE}, (1, 2, 1)),
    "mpirun within a batch shell": ({**SHELL, "SLURM_NTASKS": "1", **mpi("1", "2", "1"), **HERE}, (1, 2, 1)),
    "Intel MPI": ({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", **HERE}, (1, 4, 1)),
    "MVAPICH": ({f"MV2_COMM_WORLD_{k}": v for k, v in (("RANK", "1"), ("SIZE", "4"))} | HERE, (1, 4, None)),
}
FAULTS = {
    "RANK without WORLD_SIZE": (without(TWO, "WORLD_SIZE"), ["WORLD_SIZE: is not set"]),
    "WORLD_SIZE without RANK": (without(TWO, "RANK"), ["RANK: is not set"]),
    "LOCAL_RANK alone": ({"LOCAL_RANK": "1"}, ["RANK: is not set", "WORLD_SIZE: is not set"]),
    "no number": (TWO | {"WORLD_SIZE": "two"}, ["WORLD_SIZE: is two, and must be a whole number from 1 on"]),
    "a negative one": (TWO | {"RANK": "-1"}, ["RANK: is -1, and must be"]),
    "none": (TWO | {"WORLD_SIZE": "0"}, ["WORLD_SIZE: is 0, and must be"]),
    "local rank is no number": (TWO | {"LOCAL_RANK": "a"}, ["LOCAL_RANK: is a, and must be"]),
    "rank beyond the world": (TWO | {"RANK": "2"}, ["RANK: is 2, where WORLD_SIZE=2 leaves 0 to 1"]),
    "no MASTER_PORT": (without(TWO, "MASTER_PORT"), ["MASTER_PORT: is not set"]),
    "no MASTER_ADDR": (without(TWO, "MASTER_ADDR"), ["MASTER_ADDR: is not set"]),
    "no meeting point": (without(TWO, *HERE), ["MASTER_ADDR: is not set", "MASTER_PORT: is not set"]),
    "no port": (TWO | {"MASTER_PORT": "70000"}, ["MASTER_PORT: is 70000, and the last port is 65535"]),
    "port is no number": (TWO | {"MASTER_PORT": "x"}, ["MASTER_PORT: is x, and must be"]),
    "srun of one without MASTER_PORT": (
        {**SHELL, "SLURM_NTASKS": "1", "MASTER_ADDR": "n"},
        ["MASTER_PORT: is not set"],
    ),
    "srun without a meeting point": (without(TASK, *HERE), ["MASTER_ADDR: is not set", "MASTER_PORT: is not set"]),
    "rank 0 of it": (without(TASK, *HERE, SLURM_PROCID="0"), ["MASTER_ADDR: is not set"]),
    "srun without SLURM_NTASKS": (without(TASK, "SLURM_NTASKS"), ["SLURM_NTASKS: is not set", "unset SLURM_PROCID"]),
    "SLURM_PROCID beyond": (TASK | {"SLURM_PROCID": "8"}, ["SLURM_PROCID: is 8, where SLURM_NTASKS=8 leaves 0 to 7"]),
    "mpirun without a meeting point": (mpi("0", "2", "0"), ["MASTER_ADDR: is not set", "without mpirun"]),
    "mpirun without its size": ({"OMPI_COMM_WORLD_RANK": "0", **HERE}, ["OMPI_COMM_WORLD_SIZE: is not set"]),
    "wait": (TWO | {"LLAVA_TRAIN_START_WAIT": "5 min"}, ["LLAVA_TRAIN_START_WAIT: is 5 min"]),
}


@pytest.mark.parametrize("environ", ALONE.values(), ids=ALONE)
def test_a_process_that_is_one_trains_alone(environ):
    launch = read_launch(environ)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.host) == (0, 1, 0, "")


@pytest.mark.parametrize(("environ", "place"), SEVERAL.values(), ids=SEVERAL)
def test_a_launcher_names_the_place(environ, place):
    launch = read_launch(environ)
    assert (launch.rank, launch.world_size, launch.local_rank) == place
    assert (launch.host, launch.port) == ("node0", 29500)


@pytest.mark.parametrize(("environ", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_the_variable_and_the_remedy(environ, told):
    with pytest.raises(RunError) as raised:
        read_launch(environ)
    text = str(raised.value)
    assert all(part in text for part in told), text
    assert text.count("-> ") == text.count(". ")


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.rank)
def test_no_launcher_without_its_size_or_meeting_point(launcher):
    whole = {launcher.rank: "1", launcher.world_size: "2", launcher.local_rank: "1", **HERE}
    assert read_launch(whole).launcher is launcher
    for name in (launcher.world_size, *HERE):
        with pytest.raises(RunError, match=f"{name}: is not set"):
            read_launch(without(whole, name))


def test_a_store_of_torchrun_and_the_start_are_known():
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2", "LLAVA_TRAIN_ATTEMPT": "1"}
    assert not read_launch(TWO).has_store
    assert read_launch(TWO | agent).has_store
    assert len({read_launch(TWO | attempt).attempt for attempt in ({}, agent, {"LLAVA_TRAIN_ATTEMPT": "1"})}) == 3


@pytest.mark.parametrize(
    ("local_rank", "num_devices", "index"), [(0, 1, 0), (1, 1, 0), (7, 1, 0), (None, 1, 0), (0, 8, 0), (7, 8, 7)]
)
def test_a_rank_takes_the_only_gpu_or_that_of_its_number(local_rank, num_devices, index):
    assert device_index(Launch(3, 8, local_rank, SLURM), num_devices) == index


@pytest.mark.parametrize(
    ("local_rank", "told"),
    [(4, "SLURM_LOCALID: is 4, and GPUs 0 to 3 are visible"), (None, "SLURM_LOCALID: is not set, and 4 GPUs")],
)
def test_a_rank_without_a_gpu_of_its_own_is_refused(local_rank, told):
    with pytest.raises(RunError, match=f"{told}.*\n    -> "):
        device_index(Launch(3, 8, local_rank, SLURM), 4)


@pytest.mark.parametrize("word", ["--local_rank=1", "--local-rank=1"])
def test_the_word_that_deepspeed_adds_is_the_local_rank(word):
    environ = {}
    assert take_local_rank([word, "evaluate", "a=b"], environ) == ["evaluate", "a=b"]
    assert environ == {"LOCAL_RANK": "1"}
    with pytest.raises(RunError, match=f"{word}: LOCAL_RANK is 0"):
        take_local_rank([word], {"LOCAL_RANK": "0"})
