from pathlib import Path

import pytest
import runs
from cluster import Cluster, missing
from submitted import RECIPE, losses

SITE = """\
RANKS_PER_NODE=1
export MAX_FAILURES=2 SLURM_WAIT=20 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
RUN=(.venv/bin/python -m llava_train)
"""


@pytest.fixture(scope="session")
def daemons():
    if told := missing():
        pytest.skip(told)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(daemons, tmp_path):
    """Empty of jobs, all nodes up, with the site's settings in a file as the template reads them."""
    site = tmp_path / "site.sh"
    site.write_text(SITE)
    daemons.environ["LLAVA_SITE"] = str(site)
    daemons.configure()
    daemons.idle()
    yield daemons
    daemons.idle()


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """Losses of the run on two ranks, started by no SLURM and disturbed by nothing."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    for process in runs.start_apart(2, "-m", "llava_train", *RECIPE, f"run.dir={run}", cwd=Path(__file__).parents[2]):
        runs.finish(process)
    assert len(set(losses(run))) > 1
    return losses(run)
