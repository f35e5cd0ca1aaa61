"""Ranks that wait for each other say for whom, and end in time; a port that is taken says so."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist
from runs import free_port

from llava_train.ranks import rendezvous
from llava_train.ranks.launcher import SLURM, TORCHRUN, Launch
from llava_train.shared.errors import LostRankError, RunError

LONG = timedelta(seconds=60)


def launch(rank: int, world_size: int, port: int, start_wait: int = 1, launcher=TORCHRUN) -> Launch:
    return Launch(rank, world_size, rank, launcher, "127.0.0.1", port, start_wait=start_wait)


def in_vain(place: Launch) -> str:
    began = time.monotonic()
    with pytest.raises(LostRankError) as raised:
        rendezvous.meet(place, LONG)
    assert time.monotonic() - began < place.start_wait + 3
    return str(raised.value)


def test_ranks_that_do_not_come_are_named_in_time(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "SAID_AFTER", 0.1)
    port = free_port()
    told = in_vain(launch(0, 4, port, launcher=SLURM))
    waits = (
        f"waiting for 3 other ranks at 127.0.0.1:{port} (SLURM_NTASKS=4); in an interactive shell: unset SLURM_PROCID"
    )
    assert told.startswith(f"{waits}\n  in vain for 1 s: rank 1, 2, 3\n    -> ")
    assert capsys.readouterr().err == f"{waits} (this rank ends after 1 s)\n"


def test_a_rank_without_rank_0_says_where_it_looked():
    port = free_port()
    told = in_vain(launch(1, 2, port))
    assert f"waiting for an answer at 127.0.0.1:{port} (WORLD_SIZE=2)" in told
    assert "Connection refused" in told


def test_a_program_that_never_answers_is_waited_for_no_longer(monkeypatch):
    monkeypatch.setattr(rendezvous, "ANSWER", timedelta(seconds=1))
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "what listens there does not answer" in in_vain(launch(1, 2, other.getsockname()[1]))
    for thread in set(threading.enumerate()) - before:  # ends with the program; at the interpreter's end it may not
        thread.join(20)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=f"MASTER_PORT: {port} is taken") as raised:
            rendezvous.meet(launch(0, 2, port), LONG)
    assert not isinstance(raised.value, LostRankError)


def test_a_store_that_begins_anew_is_found_again():
    port = free_port()
    old = dist.TCPStore("127.0.0.1", port, None, True, LONG, wait_for_workers=False)
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(rendezvous.meet, launch(1, 2, port, 30), LONG)
        old.wait(["came 0.0/1"])
        del old
        first = pool.submit(rendezvous.meet, launch(0, 2, port, 30), LONG)
        stores = [first.result(40), second.result(40)]
    stores[0].set("a", "b")
    assert stores[1].get("a") == b"b"
