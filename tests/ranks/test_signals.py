"""The first stop signal is answered in order, one that launchers repeat is the same one, a later one ends at once."""

import os
import signal
import time

import pytest
from runs import finish, start

from llava_train.cli import train
from llava_train.cli.main import main
from llava_train.ranks.signals import GRACE, Stopped, StopSignal
from llava_train.shared.child_processes import STOP_SIGNALS

# Waits in C, deaf to Python's own handlers, as a process does inside a collective.
DEAF = """
import hashlib
from llava_train.ranks.signals import StopSignal
with StopSignal() as stop, stop.deferred():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
"""


def send_self(number: int, wait: float = 5) -> None:
    os.kill(os.getpid(), number)
    time.sleep(wait)


def test_outside_a_deferred_body_the_first_signal_stops():
    with StopSignal() as stop, pytest.raises(Stopped, match="SIGUSR1"):
        send_self(signal.SIGUSR1)
    assert stop.requested


def test_a_deferred_body_is_finished():
    with StopSignal() as stop:
        with stop.deferred():
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert stop.requested
        with pytest.raises(Stopped), stop.deferred():
            pytest.fail("entered after the signal")


def test_a_repeated_signal_does_not_interrupt_the_unwinding():
    def unwind() -> None:
        try:
            send_self(signal.SIGINT)
        finally:
            send_self(signal.SIGTERM, wait=0.01)

    with StopSignal(), pytest.raises(Stopped, match="SIGINT"):
        unwind()


def test_the_first_signal_is_announced_and_handlers_are_put_back(capfd):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopSignal() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1
    told = capfd.readouterr().err
    assert told.count("SIGTERM: stopping") == 1
    assert "second signal" in told


def test_the_command_exits_with_its_own_code(monkeypatch, capsys):
    def stopped(argv):
        send_self(signal.SIGTERM)

    monkeypatch.setattr(train, "load_checked", stopped)
    assert main(["+recipe=tiny"]) == 75
    assert "stopped by SIGTERM: the same command continues" in capsys.readouterr().err


def test_a_later_signal_ends_a_process_that_waits_in_c():
    process = start(1, "-c", DEAF)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: stopping" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)  # as torchrun passes on what reached the whole group
    time.sleep(GRACE + 0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    finish(process, code=128 + signal.SIGTERM, timeout=20)
    assert time.monotonic() - began < 5
