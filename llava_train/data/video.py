"""Videos: a file, or a folder of frames. Files are opened in a process of their own, which is ended after a time limit.

Enters: a path and the sampling rule. Leaves: sizes, or uint8 [frames, 3, S, S], each frame squashed (PIL bicubic).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from llava_train.config.schema import VideoConfig
from llava_train.data import video_worker
from llava_train.data.image import image_size, open_image, to_square
from llava_train.data.processes import shielded

FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
START_TIMEOUT = 120.0  # seconds for a Python process to start on a loaded machine


class UnreadableVideo(ValueError):
    """A video that cannot be opened or decoded, or not in time."""


class VideoReader:
    """Reads videos by one long-lived process, started at the first file. Not shared between threads; a copy in another
    process starts a process of its own. `timeout`: seconds that one video may take."""

    def __init__(self, video: VideoConfig, timeout: float, max_pixels: int):
        self._video, self._timeout, self._max_pixels = video, timeout, max_pixels
        self._worker: _Worker | None = None

    def size(self, path: Path) -> tuple[int, int, int]:
        """(frames that will be taken, height, width). Raises FileNotFoundError, UnreadableVideo, UnreadableImage."""
        if path.is_dir():
            frames = self._folder_frames(path)
            return len(frames), *image_size(frames[0], self._max_pixels)
        return self._ask(path, 0)

    def frames(self, path: Path, size: int) -> np.ndarray:
        """uint8 [frames, 3, size, size]. Raises as `size` does."""
        if path.is_dir():
            return np.stack([to_square(open_image(f, self._max_pixels), size) for f in self._folder_frames(path)])
        return self._ask(path, size)

    def close(self) -> None:
        """Ends the process, if this one started it."""
        worker, self._worker = self._worker, None
        if worker and worker.owner == os.getpid():
            worker.end()

    def _folder_frames(self, folder: Path) -> list[Path]:
        """All frames, numbers in names by value, at most max_frames, evenly: the folder's maker chose the rate."""
        frames = sorted((f for f in folder.iterdir() if f.suffix.lower() in FRAME_SUFFIXES), key=_natural)
        if not frames:
            raise UnreadableVideo(f"{folder}: no frames in the folder")
        fps = self._video.fps
        return [frames[i] for i in video_worker.sample_indices(len(frames), fps, fps, self._video.max_frames)]

    def _ask(self, path: Path, size: int) -> Any:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        if not self._worker or self._worker.owner != os.getpid():
            self._worker = _Worker()
        try:
            kind, answer = self._worker.ask((str(path), self._video.fps, self._video.max_frames, size), self._timeout)
        except _WorkerEnded as error:
            self._worker = None
            raise UnreadableVideo(f"{path}: {error}") from error
        if kind == "error":
            raise UnreadableVideo(f"{path}: {answer}")
        return answer

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_worker": None}

    def __del__(self) -> None:
        if getattr(self, "_worker", None):
            self.close()


class _WorkerEnded(Exception):
    pass


class _Worker:
    """The decoding process and our end of the connection to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._connection: Connection
        self._connection, theirs = Pipe()
        command = [sys.executable, "-P", video_worker.__file__, str(theirs.fileno())]
        with shielded():
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        theirs.close()
        self._receive(START_TIMEOUT)

    def ask(self, request: tuple, timeout: float) -> tuple[str, Any]:
        try:
            self._connection.send(request)
        except OSError:
            self.end()
            raise _WorkerEnded(f"the decoder ended with code {self._process.returncode}") from None
        return self._receive(timeout)

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, timeout: float) -> tuple[str, Any]:
        try:
            if not self._connection.poll(timeout):
                self.end()
                raise _WorkerEnded(f"not decoded within {timeout:g} s (data.decode_timeout)")
            return self._connection.recv()
        except (EOFError, OSError):
            self.end()
            raise _WorkerEnded(f"the decoder crashed with code {self._process.returncode}") from None


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
