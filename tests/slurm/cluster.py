"""A SLURM cluster of three nodes on this machine: real daemons, their files and sockets below a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from runs import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("n0", "n1", "n2")
LOW, HASTY, HIGH = "low", "hasty", "high"  # partitions; a job in `high` takes the nodes of one in the others
USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"
# A requeued job waits for cred_expire, two minutes by default; below five it is ignored.
_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
{more}
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=hasty Nodes=ALL PriorityTier=1 GraceTime=0 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; "" where one can."""
    if os.geteuid():
        return "SLURM's daemons need root"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


class Cluster:
    """As a context: up within it, gone after it with all that it started, even where this process is killed."""

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)  # clients ask munge for its socket
        self.environ = os.environ | {
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }
        self._ports = [free_port() for _ in range(1 + len(NODES))]
        (self.folder / "state").mkdir()
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self._configure()
        undertaker = [sys.executable, str(Path(__file__).with_name("undertaker.py")), str(self.folder)]
        self._undertaker = subprocess.Popen(undertaker, stdin=subprocess.PIPE, start_new_session=True)
        self._daemons: list[subprocess.Popen] = []
        try:
            self._start_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undertaker.communicate()
        for daemon in self._daemons:
            daemon.wait()

    def _configure(self, more: str = "", kill_wait: int = 30) -> None:
        host, port, *ports = socket.gethostname().split(".")[0], *self._ports
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
            for name, port in zip(NODES, ports, strict=True)
        )
        told = _CONF.format(host=host, port=port, folder=self.folder, nodes=nodes, more=more, kill_wait=kill_wait)
        (self.folder / "slurm.conf").write_text(told)

    def configure(self, more: str = "", kill_wait: int = 30) -> None:
        """Puts a line into slurm.conf, in place of the one before."""
        self._configure(more, kill_wait)
        self.run("scontrol", "reconfigure")

    def _start_daemons(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed", "log-file": "munge.log"}
        options = [f"--{name}={self.folder / file}" for name, file in places.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *options)
        self.wait_until((self.folder / "munge.socket").exists)
        conf = self.environ["SLURM_CONF"]
        self._start("slurmctld", "-D", "-f", conf)
        for name in NODES:
            self._start("slurmd", "-D", "-N", name, "-f", conf)
        self.wait_until(lambda: self.nodes() == dict.fromkeys(NODES, "idle"))

    def _start(self, *words: str) -> None:
        log = (self.folder / f"{words[0]}.out").open("a")
        command = ["setpriv", "--pdeathsig", "KILL", *words]
        self._daemons.append(
            subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        )

    def run(self, *words: str, check: bool = True, **options) -> str:
        """What a client command printed."""
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True, timeout=60, **options)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def idle(self) -> None:
        """Cancels all jobs, and brings all nodes back."""
        self.run("scancel", "--user=root", "--state=PENDING", check=False)
        self.run("scancel", "--user=root", "--full", "--signal=KILL", check=False)
        self.run("scancel", "--user=root", check=False)
        for name in NODES:
            self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        self.wait_until(lambda: not self.run("squeue", "--noheader"))
        self.wait_until(lambda: self.nodes() == dict.fromkeys(NODES, "idle"))

    def nodes(self) -> dict[str, str]:
        listed = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False)
        return dict(line.split() for line in listed.splitlines())

    def wait_until(self, is_due: Callable[[], object], seconds: float = 300, pause: float = 0.1) -> None:
        deadline = time.monotonic() + seconds
        while not is_due():
            assert time.monotonic() < deadline, self.run("squeue", check=False) + self.run("sinfo", check=False)
            assert all(daemon.poll() is None for daemon in self._daemons), f"a daemon ended: see {self.folder}"
            time.sleep(pause)
