import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster():
    if told := missing():
        pytest.skip(told)
    with Cluster() as cluster:
        yield cluster
