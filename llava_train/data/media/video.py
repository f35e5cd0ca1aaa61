"""Videos: a file, or a folder of frames. Files are opened in a process of their own, which is ended after a time limit.

Enters: a file and the sampling rule. Leaves: sizes, or uint8 [frames, 3, S, S], each frame squashed (PIL bicubic).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from llava_train.config.schema import VideoConfig, VideoDecoder
from llava_train.data.media import video_process
from llava_train.data.media.image import image_size, open_image
from llava_train.family.pixels import squash
from llava_train.records.image_files import sorted_frames
from llava_train.records.media_file import MediaFile, PackedFile, open_medium
from llava_train.shared.child_processes import shielded
from llava_train.shared.errors import RunError

START_TIMEOUT = 120.0  # seconds for a Python process to start on a loaded machine


class UnreadableVideo(ValueError):
    """A video that cannot be opened or decoded, or not in time."""


class VideoReader:
    """Reads videos by one long-lived process, started at the first file. Not shared between threads; a copy in another
    process starts a process of its own. `timeout`: seconds that one video may take. All decoders give the same frames.
    """

    def __init__(self, video: VideoConfig, timeout: float, max_pixels: int, decoder: VideoDecoder = "pyav"):
        self._video, self._timeout, self._max_pixels, self._decoder = video, timeout, max_pixels, decoder
        self._worker: _Worker | None = None

    def size(self, file: MediaFile) -> tuple[int, float, int, int]:
        """(frames, rate, height, width) of the file, whatever is taken of it; a folder's rate is nan: taken as it is.

        Raises FileNotFoundError, UnreadableVideo, UnreadableImage; RunError where the decoder does not load.
        """
        if frames := _frames_of(file):
            return len(frames), math.nan, *image_size(frames[0])
        return self._ask(file, 0)

    def num_taken(self, frames: int, fps: float) -> int:
        """How many frames `frames` gives of a file of so many, at that rate."""
        return len(self._taken(frames, fps))

    def frames(self, file: MediaFile, size: int) -> np.ndarray:
        """uint8 [frames, 3, size, size]. Raises as `size` does."""
        if not (frames := _frames_of(file)):
            return self._ask(file, size)
        taken = self._taken(len(frames), math.nan)
        return np.stack([squash(open_image(frames[i], self._max_pixels), size) for i in taken])

    def _taken(self, frames: int, fps: float) -> list[int]:
        return video_process.sample_indices(frames, fps, self._video.fps, self._video.max_frames)

    def close(self) -> None:
        """Ends the process, if this one started it."""
        worker, self._worker = self._worker, None
        if worker and worker.owner == os.getpid():
            worker.end()

    def _ask(self, file: MediaFile, size: int) -> Any:
        try:
            open_medium(file).close()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnreadableVideo(f"{file}: {error.strerror or error}") from error
        if not self._worker or self._worker.owner != os.getpid():
            self._worker = _Worker(self._decoder)
        try:
            request = (_place(file), size, self._video.fps, self._video.max_frames)
            kind, answer = self._worker.ask(request, self._timeout)
        except _WorkerEnded as error:
            self._worker = None
            raise UnreadableVideo(f"{file}: {error}") from error
        if kind == "error":
            raise UnreadableVideo(f"{file}: {answer}")
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

    def __init__(self, decoder: VideoDecoder) -> None:
        self.owner = os.getpid()
        self._connection: Connection
        self._connection, theirs = Pipe()
        command = [sys.executable, "-P", video_process.__file__, str(theirs.fileno()), decoder]
        with shielded():
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        theirs.close()
        kind, told = self._receive(START_TIMEOUT)
        if kind == "error":
            self.end()
            remedy = "install what it needs, or set data.video_decoder=pyav"
            raise RunError(f"data.video_decoder: {decoder} does not load: {told}\n    -> {remedy}")

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


def _place(file: MediaFile) -> video_process.Place:
    if isinstance(file, PackedFile):
        return str(file.path), file.offset, file.size, file.content
    return str(file), 0, -1, None


def _frames_of(file: MediaFile) -> list[Path]:
    """Of a folder, never empty; of a file none. Raises UnreadableVideo."""
    try:
        return folder_frames(file) if isinstance(file, Path) and file.is_dir() else []
    except OSError as error:
        raise UnreadableVideo(f"{file}: {error.strerror}") from error


def folder_frames(folder: Path) -> list[Path]:
    """All frames, numbers in names by value: the folder's maker chose the rate."""
    frames, others = sorted_frames(folder)
    if inner := next((file for file in others if file.is_dir()), None):
        raise UnreadableVideo(f"{folder}: the folder {inner.name} lies among its frames; move it elsewhere")
    if not frames:
        raise UnreadableVideo(f"{folder}: no frames in the folder")
    return frames
