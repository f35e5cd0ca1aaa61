"""The process that opens videos, so that a decoder which hangs or crashes takes nothing with it: run by `video.py`.

Enters, on the connection whose descriptor is its argument: (path, fps, max_frames, size). Leaves: ("ok", answer) or
("error", message). Imports no module of the package, since it runs as a file and must start fast.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image


def sample_indices(num_frames: int, fps: float, video_fps: float, max_frames: int) -> list[int]:
    """Frames to take: every round(fps / video_fps)-th, or `max_frames` evenly spread where that would be more.

    The rule of LLaVA-NeXT's process_video_with_decord (llava/utils.py, commit b42941c), with a stride of at least 1.
    Worked case, 10 frames at 2 fps, video_fps 1: [0 2 4 6 8]; with max_frames 3: linspace(0, 9, 3) -> [0 4 9].
    """
    stride = max(1, round(fps / video_fps)) if np.isfinite(fps) else 1
    indices = list(range(0, num_frames, stride))
    if len(indices) > max_frames:
        return [int(i) for i in np.linspace(0, num_frames - 1, max_frames)]
    return indices


class DecordVideo:
    def __init__(self, path: str):
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self._reader = decord.VideoReader(path, num_threads=1)
        self.num_frames, self.fps = len(self._reader), float(self._reader.get_avg_fps())

    def size(self) -> tuple[int, int]:
        """(height, width), of the first frame."""
        height, width, _ = self._reader[0].shape
        return height, width

    def frames(self, indices: list[int]) -> list[np.ndarray]:
        """uint8 [height, width, 3] each."""
        return list(self._reader.get_batch(indices).asnumpy())


class AvVideo:
    def __init__(self, path: str):
        import av

        self._path = path
        with av.open(path) as container:
            stream = container.streams.video[0]
            self.fps = float(stream.average_rate or 0)
            self._size = stream.codec_context.height, stream.codec_context.width
            self.num_frames = sum(packet.size > 0 for packet in container.demux(stream))

    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self._size

    def frames(self, indices: list[int]) -> list[np.ndarray]:
        """uint8 [height, width, 3] each. Decodes from the start, as seeking is not exact in every container."""
        import av

        wanted, found = set(indices), {}
        with av.open(self._path) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    found[i] = frame.to_ndarray(format="rgb24")
                if i >= indices[-1]:
                    break
        if len(found) < len(wanted):
            raise ValueError(f"frame {min(wanted - set(found))} of {self.num_frames} cannot be decoded")
        return [found[i] for i in indices]


def open_video(path: str) -> DecordVideo | AvVideo:
    """By decord where it can be imported, else by PyAV."""
    try:
        import decord  # noqa: F401
    except ImportError:
        return AvVideo(path)
    return DecordVideo(path)


def answer(path: str, fps: float, max_frames: int, size: int) -> tuple[int, int, int] | np.ndarray:
    """size 0: (frames that would be taken, height, width). Else those frames, uint8 [frames, 3, size, size]."""
    video = open_video(path)
    indices = sample_indices(video.num_frames, video.fps, fps, max_frames)
    if not indices:
        raise ValueError("no frames")
    if not size:
        return len(indices), *video.size()
    frames = (Image.fromarray(frame) for frame in video.frames(indices))
    squares = [frame.resize((size, size), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(square).transpose(2, 0, 1) for square in squares])


def _end_with_parent() -> None:
    """A decoder that hangs must not outlive the run that started it."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(descriptor: int) -> None:
    """Answers requests until the other side closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection = Connection(descriptor)
    connection.send(("ok", "ready"))
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            reply: tuple[str, Any] = ("ok", answer(*request))
        except Exception as error:  # whatever a decoder raises is an answer: this video cannot be read
            reply = ("error", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        connection.send(reply)


if __name__ == "__main__":
    main(int(sys.argv[1]))
