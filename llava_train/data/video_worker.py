"""The process that opens videos, so that a decoder which hangs or crashes takes nothing with it: run by `video.py`.

Enters, on the connection whose descriptor is its argument: a `Place` and arguments of `answer`. Leaves: ("ok", answer)
or ("error", message). Imports no module of the package, since it runs as a file and must start fast.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Place = tuple[str, int, int, bytes | None]  # path, and where it is part of another file its offset and size, or bytes


class Found(NamedTuple):
    """What a file holds: its frames, their rate, and (height, width) of one."""

    frames: int
    fps: float
    height: int
    width: int


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


def opened(place: Place) -> str | io.BytesIO:
    """What decord and PyAV open: a path, or the bytes of a part of a file."""
    path, offset, size, content = place
    if content is None and size < 0:
        return path
    if content is None:
        with Path(path).open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    return io.BytesIO(content)


def look(place: Place) -> Found:
    """From the container's index where it has a whole one, else by going through its packets; nothing is decoded."""
    import av

    file = opened(place)
    with av.open(file, mode="r") as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        entries = getattr(stream, "index_entries", ())  # PyAV before 17 does not tell them
        if stream.frames and len(entries) == stream.frames:
            kept = [entry.is_discard for entry in entries].count(False)
            needed, held = max(entry.pos + entry.size for entry in entries), _length(file)
            if needed > held:
                raise ValueError(f"truncated: {held} bytes of at least {needed}")
        else:
            kept = _count_packets(container, stream)
        if not kept:
            raise ValueError("no frames")
        context = stream.codec_context
        return Found(kept, float(stream.average_rate or 0), context.height, context.width)


def _length(file: str | io.BytesIO) -> int:
    return os.path.getsize(file) if isinstance(file, str) else file.getbuffer().nbytes


def _count_packets(container: Any, stream: Any) -> int:
    kept = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError(f"truncated or damaged after {kept} frames")
        kept += packet.size > 0 and not packet.is_discard
    return kept


def by_decord(place: Place, found: Found, indices: list[int]) -> list[np.ndarray] | None:
    """Frames, uint8 [height, width, 3] each; None where decord is not installed or does not see the frames `found`."""
    try:
        import decord
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(opened(place), num_threads=1)
        return list(reader.get_batch(indices).asnumpy()) if len(reader) == found.frames else None
    except (decord.DECORDError, RuntimeError):  # PyAV decodes it, or says what is wrong
        return None


def by_av(place: Place, found: Found, indices: list[int]) -> list[np.ndarray]:
    """As `by_decord`. Decodes from the start, as seeking is not exact in every container."""
    import av

    wanted, frames = set(indices), {}
    with av.open(opened(place), mode="r") as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frames[i] = frame.to_ndarray(format="rgb24")
            if i >= indices[-1]:
                break
    if len(frames) < len(wanted):
        raise ValueError(f"frame {min(wanted - set(frames))} of {found.frames} cannot be decoded")
    return [frames[i] for i in indices]


def answer(place: Place, size: int, fps: float, max_frames: int) -> Found | np.ndarray:
    """size 0: what the file holds. Else the frames to take, uint8 [frames, 3, size, size], squashed."""
    found = look(place)
    if not size:
        return found
    indices = sample_indices(found.frames, found.fps, fps, max_frames)
    frames = by_decord(place, found, indices) or by_av(place, found, indices)
    squares = np.empty((len(indices), 3, size, size), dtype=np.uint8)
    for square, frame in zip(squares, frames, strict=True):
        square[:] = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return squares


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
            held = answer(*request)
            reply: tuple[str, Any] = ("ok", tuple(held) if isinstance(held, Found) else held)
        except Exception as error:  # whatever a decoder raises is an answer: this video cannot be read
            reply = ("error", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        connection.send(reply)


if __name__ == "__main__":
    main(int(sys.argv[1]))
