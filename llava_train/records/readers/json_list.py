"""A JSON list of records, in place: parsed window by window, so that memory holds a window and one record."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from llava_train.records.readers.reader import Raw, Reader

WINDOW = 2**20  # bytes
_SPACE = " \t\n\r"
_TOKEN = 16  # more characters than any token that the end of a window can cut in two, strings apart


class JsonList(Reader):
    def __iter__(self) -> Iterator[Raw]:
        with self.path.open("rb") as file:
            text, number = _Text(file), 0
            if text.peek() != "[":
                raise ValueError("holds no list of records")
            text.skip()
            if text.peek() == "]":
                text.skip()
            else:
                mark = ","
                while mark == ",":
                    text.peek()
                    yield text.record(number)
                    if (mark := text.peek()) not in (",", "]"):
                        raise text.damage(number, "no ',' or ']' behind it")
                    number += 1
                    text.skip()
            if text.peek():
                raise text.damage(number, "something stands behind the list")


class _Text:
    """A file as text, of which a window is held."""

    def __init__(self, file: BinaryIO):
        self._file, self._utf8 = file, codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self.offset = 0  # in bytes, of the character at `_at`
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self.offset = len(codecs.BOM_UTF8)
        file.seek(self.offset)

    def peek(self) -> str:
        """The next character that is no space, empty at the end."""
        while True:
            rest = len(self._text)
            while self._at < rest and self._text[self._at] in _SPACE:
                self.skip()
            if self._at < rest or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(WINDOW)

    def skip(self) -> None:
        """Over one character of ASCII."""
        self._at += 1
        self.offset += 1

    def record(self, number: int) -> Raw:
        """The value that stands here. Raises ValueError where it is none."""
        window = WINDOW
        while True:
            try:
                _, end = self._json.raw_decode(self._text, self._at)
                if end < len(self._text) - _TOKEN or self._ended:
                    break
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _TOKEN
                if self._ended or not cut:
                    behind = len(self._text[self._at : error.pos].encode())
                    raise self.damage(number, error.msg, behind) from error
            except RecursionError as error:
                raise self.damage(number, "nested too deep") from error
            self._more(window)
            window *= 2
        raw = Raw(self._text[self._at : end].encode(), self.offset)
        self._at, self.offset = end, self.offset + len(raw.content)
        return raw

    def damage(self, number: int, told: str, behind: int = 0) -> ValueError:
        return ValueError(f"record {number}, byte {self.offset + behind}: {told}")

    def _more(self, size: int) -> None:
        content = self._file.read(size)
        start = self._file.tell() - len(content)
        self._ended = len(content) < size
        try:
            text = self._utf8.decode(content, self._ended)
        except UnicodeDecodeError as error:
            kept = len(error.object) - len(content)  # bytes of a character that the last window began
            raise ValueError(f"byte {start - kept + error.start}: is not UTF-8") from error
        self._text, self._at = self._text[self._at :] + text, 0
