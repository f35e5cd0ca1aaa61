"""A conversation in the terminal: lines of the user in, answers out as their tokens come. Reads pipes as well."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llava_train.data.samples.prompts import TAGS, named_file, with_tags
from llava_train.data.samples.sample import Medium, Sample, Turn
from llava_train.shared.errors import DataError

Answer = Callable[[Sample, Callable[[str], None]], str]
HELP = """\
/image PATH   an image for your next question; as many as you like, also between questions
/video PATH   a video file, or a folder of frames
/undo         takes back the last image or video that was not asked about yet, else the last question
/reset        forgets everything
/help         this list
/quit         leaves, as Ctrl-D does
Ctrl-C stops an answer; what was said stays. In a question <image> and <video> mark places; else media come first."""


@dataclass(frozen=True)
class Exchange:
    question: str  # with the tags of its media
    media: list[Medium]
    answer: str


class Chat:
    """What was said so far, and the media that wait for a question. `say` takes a line of the user and prints."""

    def __init__(self, answer: Answer, system: str, images: Sequence[str] = (), videos: Sequence[str] = ()):
        self._answer, self._system = answer, system
        self._exchanges: list[Exchange] = []
        self._waiting = [Medium("image", named_file(path)) for path in images]
        self._waiting += [Medium("video", named_file(path)) for path in videos]

    def say(self, line: str) -> bool:
        """Whether the conversation goes on."""
        command, _, argument = line.strip().partition(" ")
        match command:
            case "":
                pass
            case "/quit":
                return False
            case "/help":
                print(HELP)
            case "/reset":
                self._exchanges, self._waiting = [], []
                print("(nothing was said yet)")
            case "/undo":
                print(f"({self._undo()})")
            case "/image" | "/video":
                print(f"({self._add(command, argument.strip())})")
            case _ if command.startswith("/") and "/" not in command[1:]:
                print(f"(no command {command}; /help lists them)")
            case _:
                self._ask(line.strip())
        return True

    def _add(self, command: str, path: str) -> str:
        if (
            len(path) > 1 and path[0] == path[-1] and path[0] in "'\""
        ):  # as terminals write a file that is dropped on them
            path = path[1:-1]
        try:
            file = named_file(os.path.expanduser(path))
        except DataError as error:
            return f"{error.detail}: write {command} PATH"
        if not os.path.exists(file):
            return f"no file {path}: write {command} PATH"
        self._waiting.append(Medium("image" if command == "/image" else "video", file))
        return f"{len(self._waiting)} for your next question"

    def _undo(self) -> str:
        if self._waiting:
            return f"without {self._waiting.pop().file}"
        return f"unsaid: {self._exchanges.pop().question}" if self._exchanges else "nothing to take back"

    def _ask(self, text: str) -> None:
        media = self._waiting
        question, told = with_tags(text, [medium.kind for medium in media]), list[str]()

        def tell(piece: str) -> None:
            told.append(piece)
            print(piece, end="", flush=True)

        try:
            self._answer(self._sample([*self._exchanges, Exchange(question, media, "")]), tell)
            print()
        except KeyboardInterrupt:
            print(" (stopped)")
        except DataError as error:
            print(f"({error.reason}: {error.detail}; the question is unsaid, its media are dropped)")
            self._waiting = []
            return
        if told:
            self._waiting = []
            answer = "".join(told)
            for tag in TAGS.values():  # a tag in an answer has no medium
                answer = answer.replace(tag, "")
            self._exchanges.append(Exchange(question, media, answer))

    def _sample(self, exchanges: list[Exchange]) -> Sample:
        """All turns so far, the last of them to be answered."""
        turns = [Turn("system", self._system)] if self._system else []
        for exchange in exchanges:
            turns += [Turn("human", exchange.question), Turn("gpt", exchange.answer)]
        media = [medium for exchange in exchanges for medium in exchange.media]
        images, videos = ([m.file for m in media if m.kind == kind] for kind in ("image", "video"))
        return Sample("chat", "generate", turns[:-1], images, videos, record=str(len(exchanges)))


def chat(conversation: Chat) -> None:
    """Until the user leaves or the input ends."""
    for line in _lines():
        if not conversation.say(line):
            return


def _lines() -> Iterator[str]:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() its editing and history

        print("ask away; /help lists what else you can write")
    while True:
        try:
            yield input("> " if is_terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(/quit leaves)")
