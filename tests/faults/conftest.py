from pathlib import Path

import pytest
from jobs import Job, losses, start_server


@pytest.fixture(scope="session", autouse=True)
def server():
    start_server()


@pytest.fixture(autouse=True)
def nothing_left():
    """A failed test must not leave runs behind: they would wait for ever, and who reads the tests' output with them."""
    yield
    while Job.started:
        Job.started.pop().kill()


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The folder of a run with these settings that nothing disturbed; each is run once."""
    known: dict[tuple, Path] = {}

    def run(*overrides: str, num_ranks: int = 1) -> Path:
        key = (*overrides, num_ranks)
        if key not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            Job(folder, *overrides, num_ranks=num_ranks).end()
            assert len(set(losses(folder))) > 1
            known[key] = folder
        return known[key]

    return run
