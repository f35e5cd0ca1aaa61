"""Memory that is left, read from files as a machine, a container and a job show them."""

from __future__ import annotations

import numpy as np
import pytest

from llava_train.shared.host_memory import available_memory, peak_memory, restart_peak


@pytest.fixture
def machine(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable:  800 kB\n")
    return tmp_path


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_machine_alone(machine, tmp_path_factory):
    assert available_memory(machine) == 800 * 1024
    assert available_memory(tmp_path_factory.mktemp("none")) == 0


def test_job_of_the_second_version_counts_with_the_groups_above_it(machine):
    """Worked case: limit 500,000, used 400,000 of which 100,000 can be reclaimed: 200,000 are left."""
    write(machine, "proc/self/cgroup", "0::/job/step\n")
    write(machine, "sys/fs/cgroup/job/step/memory.max", "max\n")
    write(machine, "sys/fs/cgroup/job/memory.max", "500000\n")
    write(machine, "sys/fs/cgroup/job/memory.current", "400000\n")
    write(machine, "sys/fs/cgroup/job/memory.stat", "anon 300000\ninactive_file 100000\n")
    assert available_memory(machine) == 200_000


def test_job_of_the_first_version(machine):
    write(machine, "proc/self/cgroup", "3:cpu:/other\n4:memory:/slurm/job\n")
    folder = "sys/fs/cgroup/memory/slurm/job/memory"
    write(machine, f"{folder}.limit_in_bytes", "500000\n")
    write(machine, f"{folder}.usage_in_bytes", "600000\n")
    write(machine, f"{folder}.stat", "total_inactive_file 150000\n")
    assert available_memory(machine) == 50_000


def test_peak_is_what_was_held_since_it_was_restarted():
    restart_peak()
    before = peak_memory()
    held = np.ones(2**24)
    size = 0.9 * held.nbytes  # the kernel counts pages in batches
    assert size <= peak_memory() - before <= 2 * size
    del held
    assert peak_memory() - before >= size
    restart_peak()
    assert peak_memory() - before < size / 2
