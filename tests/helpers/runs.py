"""Starts the package as a user does: the real command, on one or more ranks, in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

WORKERS = Path(__file__).parents[1] / "workers"
TINY = Path(__file__).parents[2] / "data/tiny"
# Modules that tests and their workers share lie beside this one; the package is that of this checkout.
_PATHS = (Path(__file__).parent, WORKERS, Path(__file__).parents[2])
_ENVIRON = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, _PATHS))}
_OUTPUT = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def start(num_ranks: int, *words: str, **options) -> Popen:
    """`python WORDS`, by torchrun where there are several ranks; all that they print goes to one pipe."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    command = [sys.executable, *(launcher if num_ranks > 1 else []), *words]
    return Popen(command, **{**_OUTPUT, "env": os.environ | _ENVIRON, "start_new_session": True, **options})


def start_apart(num_ranks: int, *words: str, **options) -> list[Popen]:
    """`python WORDS` on each rank without a launcher, as srun starts them: each has its own pipe and exit code.

    The first is the leader of a process group that all are in.
    """
    port = free_port()
    processes: list[Popen] = []
    for rank in range(num_ranks):
        environ = os.environ | _ENVIRON | rank_environ(rank, num_ranks, port)
        leader = processes[0].pid if processes else 0
        command = [sys.executable, *words]
        processes.append(Popen(command, **{**_OUTPUT, "env": environ, "process_group": leader, **options}))
    return processes


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rank_environ(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What srun tells a task."""
    place = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(num_ranks), "SLURM_LOCALID": str(rank)}
    return place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def training(folder: Path, *overrides: str) -> list[str]:
    """The words that train the tiny recipe."""
    return ["-m", "llava_train", "+recipe=tiny", f"run.dir={folder}", *overrides]


def finish(process: Popen, code: int = 0, timeout: int = 300) -> str:
    """What the process printed; it must end with `code`."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(os.getpgid(process.pid), signal.SIGKILL)
        raise
    assert process.returncode == code, f"exit code {process.returncode}: {out[-4000:]}{(err or '')[-4000:]}"
    return out


def wait_until(is_due: Callable[[], object], process: Popen, pause: float = 0.01) -> None:
    """Returns at the first true answer; the process must not have ended by then."""
    while not is_due():
        assert process.poll() is None, process.stdout.read()
        time.sleep(pause)


def kill(*processes: Popen) -> None:
    """SIGKILL to the processes and all that is in their group."""
    os.killpg(os.getpgid(processes[0].pid), signal.SIGKILL)
    for process in processes:
        process.communicate()


def metrics(folder: Path, stage: str = "onevision") -> list[dict]:
    """The lines that the stage has logged so far; a last one that is being written is left out."""
    path = folder / stage / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
