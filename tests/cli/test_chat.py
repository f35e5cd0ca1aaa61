"""A conversation, scripted through the standard input."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from llava_train.cli.chat import HELP, Chat, chat


class Model:
    """Answers with what it was asked, in two pieces; keeps each sample."""

    def __init__(self):
        self.asked = []

    def __call__(self, sample, tell):
        self.asked.append(sample)
        if "STOP" in sample.turns[-1].text:
            tell("half")
            raise KeyboardInterrupt
        if "LATE" in sample.turns[-1].text:
            raise KeyboardInterrupt
        sample.media()  # raises where tags and media differ
        tell("you said ")
        tell(sample.turns[-1].text)
        return ""

    @property
    def last(self):
        sample = self.asked[-1]
        images, videos = ([path.name for path in paths] for paths in (sample.images, sample.videos))
        return [tuple(turn) for turn in sample.turns], images, videos


@pytest.fixture
def talk(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b c.png", "d.mp4"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    model = Model()

    def say(text, **settings):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        chat(Chat(model, settings.pop("system", ""), **settings))
        return model, capsys.readouterr().out

    return say


def test_turns_carry_what_was_said(talk):
    model, told = talk("Hello\n\nAgain", system="Be brief.")
    assert told == "you said Hello\nyou said Again\n"
    said = [("system", "Be brief."), ("human", "Hello"), ("gpt", "you said Hello"), ("human", "Again")]
    assert model.last == (said, [], [])


def test_media_join_the_next_question_in_their_order(talk):
    model, _ = talk("/image a.png\n/video d.mp4\n/image 'b c.png'\nWhat?\n/image b c.png\nAnd now?\nSure?")
    turns, images, videos = model.last
    assert [text for role, text in turns if role == "human"] == [
        "<image>\n<video>\n<image>\nWhat?",
        "<image>\nAnd now?",
        "Sure?",
    ]
    assert (images, videos) == (["a.png", "b c.png", "b c.png"], ["d.mp4"])


def test_media_of_the_command_line_wait_for_the_first_question(talk):
    model, _ = talk("one <image> two <video>", images=["a.png"], videos=["d.mp4"])
    assert model.last == ([("human", "one <image> two <video>")], ["a.png"], ["d.mp4"])


def test_undo_takes_back_a_medium_then_a_question(talk):
    model, told = talk("One\nTwo\n/image a.png\n/undo\n/undo\nThree\n/undo\n/undo\n/undo")
    assert [text for _, text in model.last[0]] == ["One", "you said One", "Three"]
    undone = ["(without a.png)", "(unsaid: Two)", "(unsaid: Three)", "(unsaid: One)", "(nothing to take back)"]
    assert [line for line in told.splitlines() if line in undone] == undone


def test_reset_forgets_everything(talk):
    model, _ = talk("One\n/image a.png\n/reset\nTwo")
    assert model.last == ([("human", "Two")], [], [])


def test_help_and_mistakes_ask_nothing(talk):
    model, told = talk(f"/help\n/image absent.png\n/image {'A' * 5000}\n/image\n/imag a.png\n/quit\nHello")
    assert model.asked == []
    assert HELP in told
    assert "(no file absent.png: write /image PATH)" in told
    assert "(5,000 characters) is longer than any file's" in told
    assert "(no command /imag; /help lists them)" in told
    assert set(HELP.split()) >= {"/image", "/video", "/undo", "/reset", "/help", "/quit"}


def test_a_stopped_answer_keeps_what_was_said_and_the_conversation(talk):
    model, told = talk("STOP\nLATE\nAnd?")
    assert "half (stopped)\n" in told
    assert model.last[0] == [("human", "STOP"), ("gpt", "half"), ("human", "And?")]


def test_a_question_that_cannot_be_asked_is_unsaid(talk):
    model, told = talk("/image a.png\nTwo <image> tags <image>\nAnd?")
    assert "(tag/media mismatch: " in told
    assert model.last == ([("human", "And?")], [], [])


SCRIPT = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
from llava_train.cli.chat import Chat, chat
def answer(sample, tell):
    tell("begun")
    if "slow" in sample.turns[-1].text:
        time.sleep(60)
chat(Chat(answer, ""))
print("left")
"""


def test_ctrl_c_at_a_terminal_stops_the_answer_and_not_the_program():
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        os.write(ours, b"slow\n")
        assert read_until(process, b"begun")
        process.send_signal(signal.SIGINT)
        assert read_until(process, b"(stopped)")
        process.send_signal(signal.SIGINT)
        assert read_until(process, b"(/quit leaves)")
        os.write(ours, b"quick\n/quit\n")
        assert read_until(process, b"left")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(ours)


def read_until(process, text):
    seen, end = b"", time.monotonic() + 60
    while text not in seen and time.monotonic() < end:
        if not select.select([process.stdout], [], [], 60)[0] or not (new := os.read(process.stdout.fileno(), 4096)):
            return False
        seen += new
    time.sleep(0.2)  # for the program to wait for its next line
    return text in seen
