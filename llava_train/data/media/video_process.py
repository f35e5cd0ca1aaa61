"""The process that opens videos, so that a decoder which hangs or crashes takes nothing with it: run by `video.py`.

Enters, on the connection whose descriptor is its argument: a `Place` and arguments of `answer`. Leaves: ("ok", answer)
or ("error", message). Imports no module of the package, since it runs as a file and must start fast.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Place = tuple[str, int, int, bytes | None]  # path, and where it is part of another file its offset and size, or bytes


SEEKABLE = {"mp4", "mov", "matroska", "webm"}  # containers with an index of key frames


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
            kept = len(_shown(container, stream))
        if not kept:
            raise ValueError("no frames")
        context = stream.codec_context
        return Found(kept, float(stream.average_rate or 0), context.height, context.width)


def _length(file: str | io.BytesIO) -> int:
    return os.path.getsize(file) if isinstance(file, str) else file.getbuffer().nbytes


class Packet(NamedTuple):
    """Of one frame: when it is shown, in units of the stream, and whether decoding may begin at it."""

    time: int | None
    is_key: bool


def _shown(container: Any, stream: Any) -> list[Packet]:
    """The packets whose frame is shown, as they lie in the file."""
    found: list[Packet] = []
    codec = stream.codec_context.name
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError(f"truncated or damaged after {len(found)} frames")
        if packet.size and not packet.is_discard and not _is_reference_alone(codec, memoryview(packet)):
            found.append(Packet(packet.pts, packet.is_keyframe))
    return found


def _is_reference_alone(codec: str, packet: memoryview) -> bool:
    """Whether a frame of VP8 or VP9 only serves those after it, by the bit show_frame of its header (RFC 6386, section
    9.1; VP9 bitstream specification, sections 6.2 and annex B: a superframe shows its last frame)."""
    if codec == "vp8":
        return not packet[0] & 0b10000
    if codec == "vp9" and packet[-1] & 0b11100000 != 0b11000000:
        bits = packet[0] << (packet[0] & 0b00110000 == 0b00110000)  # profile 3 has one bit more
        return not bits & 0b1000 and not bits & 0b10
    return False


def by_pyav(place: Place, found: Found, indices: list[int]) -> list[np.ndarray]:
    """Frames, uint8 [height, width, 3] each, turned as the container says. Raises ValueError, and what PyAV raises."""
    import av

    with av.open(opened(place), mode="r") as container:
        frames = _sought(container, container.streams.video[0], found, indices)
    return frames or _in_turn(place, found, indices)


def _sought(container: Any, stream: Any, found: Found, indices: list[int]) -> list[np.ndarray] | None:
    """Frames by the times of all packets, each decoded from the last key frame before it. None where these do not tell
    which frame is which, or the container does not lead to its key frames."""
    if not _has_index(container):
        return None
    packets = _shown(container, stream)
    times = sorted({packet.time for packet in packets if packet.time is not None})
    keys = sorted(packet.time for packet in packets if packet.is_key and packet.time is not None)
    if not len(times) == len(packets) == found.frames or not keys or keys[0] != times[0]:
        return None
    wanted, frames = sorted({times[i] for i in indices}), dict[int, np.ndarray]()
    decoded: Iterator[Any] = iter(())
    last = times[0] - 1
    for shown_at in wanted:
        if (key := keys[bisect_right(keys, shown_at) - 1]) > last:  # else going on takes no longer
            container.seek(key, stream=stream)
            decoded = _decoded(container, stream, wanted)
        frame = next((frame for frame in decoded if frame.pts is None or frame.pts >= shown_at), None)
        if frame is None or frame.pts != shown_at:
            return None
        frames[shown_at], last = _turned(frame), shown_at
    return [frames[times[i]] for i in indices]


def _has_index(container: Any) -> bool:
    return not SEEKABLE.isdisjoint(container.format.name.split(","))


def _leads_back(packets: list[Packet]) -> bool:
    """Whether a frame is shown before the last key frame that lies before it. Worked case: times 0* 2 1 is none, with a
    key frame 0* 3* 2 1 is."""
    last: int | None = None
    for packet in packets:
        if packet.is_key:
            last = packet.time
        elif packet.time is None or last is None or packet.time < last:
            return True
    return False


def _decoded(container: Any, stream: Any, wanted: list[int]) -> Iterator[Any]:
    """From where the container stands; of H.264, frames that neither are wanted nor serve another are passed over."""
    context, times = stream.codec_context, set(wanted)
    passes_over = context.name == "h264"
    for packet in container.demux(stream):
        context.skip_frame = "NONREF" if passes_over and packet.size and packet.pts not in times else "DEFAULT"
        yield from packet.decode()


def _in_turn(place: Place, found: Found, indices: list[int]) -> list[np.ndarray]:
    """From the first frame on."""
    import av

    wanted, frames = set(indices), {}
    with av.open(opened(place), mode="r") as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frames[i] = _turned(frame)
            if i >= indices[-1]:
                break
    if len(frames) < len(wanted):
        raise ValueError(f"frame {min(wanted - set(frames))} of {found.frames} cannot be decoded")
    return [frames[i] for i in indices]


def _turned(frame: Any) -> np.ndarray:
    """By the quarter turns that the container asks for; another angle is not heeded."""
    pixels = frame.to_ndarray(format="rgb24")
    return pixels if frame.rotation % 90 else np.rot90(pixels, frame.rotation // 90)


def by_decord(place: Place, found: Found, indices: list[int]) -> list[np.ndarray] | None:
    """As `by_pyav`; None where it does not see the frames `found`, refuses the file, or may take one frame for another.

    Release 0.6 does so without an index of key frames, as in MPEG-TS, and where frames behind a key frame are shown
    before it.
    """
    import av
    import decord

    with av.open(opened(place), mode="r") as container:
        if not _has_index(container) or _leads_back(_shown(container, container.streams.video[0])):
            return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(opened(place), num_threads=1)
        return list(reader.get_batch(indices).asnumpy()) if len(reader) == found.frames else None
    except (decord.DECORDError, RuntimeError):
        return None


def by_torchcodec(place: Place, found: Found, indices: list[int]) -> list[np.ndarray] | None:
    """As `by_decord`. It turns frames itself from release 0.11 on."""
    from torchcodec.decoders import VideoDecoder

    file = opened(place)
    try:
        decoder = VideoDecoder(file if isinstance(file, str) else file.getvalue(), dimension_order="NHWC")
        return list(decoder.get_frames_at(indices).data.numpy()) if len(decoder) == found.frames else None
    except RuntimeError:
        return None


Decode = Callable[[Place, Found, list[int]], list[np.ndarray] | None]
DECODERS: dict[str, Decode] = {"pyav": by_pyav, "decord": by_decord, "torchcodec": by_torchcodec}
MODULES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}


def answer(place: Place, size: int, fps: float, max_frames: int, decoder: str) -> Found | np.ndarray:
    """size 0: what the file holds. Else the frames to take, uint8 [frames, 3, size, size], squashed.

    What a decoder leaves out, PyAV decodes, or says what is wrong: the frames are the same by each."""
    found = look(place)
    if not size:
        return found
    indices = sample_indices(found.frames, found.fps, fps, max_frames)
    frames = DECODERS[decoder](place, found, indices) or by_pyav(place, found, indices)
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


def main(descriptor: int, decoder: str) -> None:
    """Answers requests until the other side closes. The first answer is whether the decoder loads."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection = Connection(descriptor)
    try:
        importlib.import_module(MODULES[decoder])
        connection.send(("ok", "ready"))
    except (ImportError, OSError, RuntimeError) as error:  # of a shared library that is missing, as each tells it
        connection.send(("error", str(error).strip().partition("\n")[0]))
    while True:
        try:
            request: tuple[Place, int, float, int] = connection.recv()
        except EOFError:
            return
        try:
            held = answer(*request, decoder)
            reply: tuple[str, Any] = ("ok", tuple(held) if isinstance(held, Found) else held)
        except Exception as error:  # whatever a decoder raises is an answer: this video cannot be read
            reply = ("error", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        connection.send(reply)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
