"""Videos: which frames, their pixels by either decoder, folders, and decoders that hang or crash."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from llava_train.config.schema import VideoConfig
from llava_train.data.media import video_process
from llava_train.data.media.video import UnreadableVideo, VideoReader
from llava_train.data.media.video_process import by_decord, by_pyav, look, sample_indices
from llava_train.family.pixels import squash
from llava_train.records.media_file import PackedFile
from llava_train.shared.errors import RunError


def write_video(path: Path, num_frames: int, rate: int, codec: str = "mpeg4", uneven: bool = False, **options) -> Path:
    """Frame i is grey, of brightness 8 * i, 64 x 48; uneven: it is shown at second i**2 / rate."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * i % 256, dtype=np.uint8), format="rgb24")
            if uneven:
                frame.pts = i**2
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def reader():
    readers = []

    def make(fps: float = 1, max_frames: int = 32, timeout: float = 60) -> VideoReader:
        readers.append(VideoReader(VideoConfig(fps, max_frames), timeout, 10**8))
        return readers[-1]

    yield make
    for made in readers:
        made.close()


@pytest.fixture(scope="module")
def all_frames():
    """A reader that takes up to 40 frames, with one process for all tests."""
    videos = VideoReader(VideoConfig(1000, 40), 60, 10**8)
    yield videos
    videos.close()


@pytest.mark.parametrize(
    ("num_frames", "fps", "video_fps", "max_frames", "expected"),
    [
        (10, 2, 1, 32, [0, 2, 4, 6, 8]),
        (10, 2, 1, 3, [0, 4, 9]),
        (32, 8, 8, 8, [0, 4, 8, 13, 17, 22, 26, 31]),
        (3, 29.97, 1, 32, [0]),
        (4, 0.4, 1, 32, [0, 1, 2, 3]),
        (61, 29.97, 1, 32, [0, 30, 60]),
        (5, float("nan"), 1, 2, [0, 4]),
        (0, 25, 1, 32, []),
    ],
)
def test_sampled_frames_by_hand(num_frames, fps, video_fps, max_frames, expected):
    assert sample_indices(num_frames, fps, video_fps, max_frames) == expected


def test_file_gives_the_sampled_frames_squashed(tmp_path, reader):
    path = write_video(tmp_path / "a.mp4", 20, rate=8)
    videos = reader(fps=2, max_frames=4)
    assert videos.size(path) == (20, 8, 48, 64)
    frames = videos.frames(path, 32)
    assert frames.dtype == np.uint8
    assert frames.shape == (4, 3, 32, 32)
    assert np.abs(frames.mean((1, 2, 3)) - [0, 48, 96, 152]).max() < 4  # frames 0 6 12 19
    place = (str(path), 0, -1, None)
    whole = by_pyav(place, look(place), [0, 6, 12, 19])
    assert np.array_equal(frames, [squash(Image.fromarray(frame), 32) for frame in whole])


COLOURED = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def write_coloured(
    path: Path, num_frames: int, codec: str = "libx264", turned: int = 0, **options: str
) -> video_process.Place:
    """Blobs of colour that move, 96 x 64."""
    pixels = np.asarray(COLOURED.resize((96, 64), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if turned:
            stream.set_display_rotation(turned)
        for i in range(num_frames):
            rolled = np.ascontiguousarray(np.roll(pixels, 3 * i, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rolled, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path), 0, -1, None


def decoded_in_turn(place: video_process.Place, indices: list[int]) -> list[np.ndarray]:
    with av.open(place[0]) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frames[i] for i in indices]


GROUPS = {  # file and encoder, with a key frame every 10 frames
    "h264.mp4": ("libx264", {"g": "10"}),
    "h264.mkv": ("libx264", {"g": "10"}),
    "h264.ts": ("libx264", {"g": "10"}),
    "open.mp4": ("libx264", {"g": "10", "x264-params": "open-gop=1:bframes=3"}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=10:open-gop=1:bframes=3:log-level=none"}),
    "mpeg4.mp4": ("mpeg4", {"g": "10", "bf": "2"}),
    "vp8.webm": ("libvpx", {"g": "10"}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "deadline": "realtime"}),
}


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("name", GROUPS)
def test_every_decoder_gives_the_frames_that_are_shown(tmp_path, name, decoder):
    codec, options = GROUPS[name]
    place = write_coloured(tmp_path / name, 40, codec, **options)
    found = look(place)
    for indices in ([0, 10, 20, 30], [7, 8, 9, 29, 39], [25]):
        frames = video_process.DECODERS[decoder](place, found, indices)
        if decoder == "decord" and name in ("h264.ts", "open.mp4", "hevc.mp4", "mpeg4.mp4"):
            assert frames is None  # it would take one for another, so PyAV decodes
        else:
            assert all(map(np.array_equal, frames, decoded_in_turn(place, indices)))


def test_frames_are_decoded_from_the_last_key_frame_before_them(tmp_path, monkeypatch):
    place, times = write_coloured(tmp_path / "a.mp4", 40, g="10", bf="0"), []
    decoded = video_process._decoded

    def counted(*arguments):
        for frame in decoded(*arguments):
            times.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_process, "_decoded", counted)
    by_pyav(place, look(place), [2, 31, 35])
    assert len(times) == 3 + 6  # frames 0 1 2, 30 to 35


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_frames_are_turned_as_the_container_says(tmp_path, turned):
    upright = by_pyav(place := write_coloured(tmp_path / "a.mp4", 3), look(place), [1])
    place = write_coloured(tmp_path / "turned.mp4", 3, turned=turned)
    for decode in video_process.by_pyav, by_decord:
        frames = decode(place, look(place), [1])
        assert np.array_equal(frames[0], np.rot90(upright[0], turned // 90))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_invisible_frames_are_no_frames(decoder):
    """A film of VP8 as encoders write it, with 6 frames beside the 60 that are shown."""
    place = (str(Path(__file__).parent / "invisible_frames.webm"), 0, -1, None)
    found = look(place)
    assert found.frames == 60
    for indices in ([0, 30, 59], list(range(0, 60, 7))):
        frames = video_process.DECODERS[decoder](place, found, indices) or by_pyav(place, found, indices)
        assert all(map(np.array_equal, frames, decoded_in_turn(place, indices)))


@pytest.mark.parametrize(
    ("content", "hides"),
    [
        ([0b10000000, 0], True),
        ([0b10000010, 0], False),  # shown
        ([0b10001000, 0], False),  # shows a frame of before
        ([0b10000000, 0b11000000], False),  # of several frames
        ([0b10110000, 0], True),
        ([0b10110001, 0], False),  # profile 3
    ],
)
def test_vp9_hides_frames_by_its_header(content, hides):
    assert video_process._is_reference_alone("vp9", memoryview(bytes(content))) == hides


def test_a_decoder_is_taken_where_it_is_asked_for(tmp_path, monkeypatch):
    place = write_coloured(tmp_path / "a.mp4", 4)
    asked = []

    class VideoDecoder:
        def __init__(self, source, dimension_order):
            asked.append((source, dimension_order))
            self.length = 4 if source == place[0] else 5

        def __len__(self):
            return self.length

        def get_frames_at(self, indices):
            frames = torch.full((len(indices), 64, 96, 3), 7, dtype=torch.uint8)
            return SimpleNamespace(data=frames)

    stand_in = {"torchcodec": SimpleNamespace(), "torchcodec.decoders": SimpleNamespace(VideoDecoder=VideoDecoder)}
    for name, module in stand_in.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert (video_process.answer(place, 8, 1, 32, "torchcodec") == 7).all()
    assert (video_process.answer(place, 8, 1, 32, "decord") != 7).any()
    assert asked == [(place[0], "NHWC")]
    inside = ("", 0, -1, Path(place[0]).read_bytes())  # of which it sees another number of frames
    assert np.array_equal(
        video_process.answer(inside, 8, 1, 32, "torchcodec"), video_process.answer(place, 8, 1, 32, "pyav")
    )


def test_a_decoder_that_does_not_load_ends_the_run(tmp_path, monkeypatch):
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise RuntimeError('Could not load libtorchcodec\\n...')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"")
    videos = VideoReader(VideoConfig(1, 4), 60, 10**8, "torchcodec")
    with pytest.raises(RunError, match=r"torchcodec does not load: Could not load libtorchcodec\n.*video_decoder=pyav"):
        videos.size(tmp_path / "a.mp4")


def test_folder_takes_all_frames_by_number_up_to_the_limit(tmp_path, reader):
    for i in range(12):
        Image.new("RGB", (20, 10), (i * 20, 0, 0)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    frames, fps, *size = reader().size(tmp_path)
    assert (frames, size) == (12, [10, 20])
    assert np.isnan(fps)
    frames = reader(max_frames=4).frames(tmp_path, 8)
    assert frames[:, 0, 0, 0].tolist() == [0, 60, 140, 220]  # frames 0 3 7 11


def test_unreadable_videos_say_why(tmp_path, reader):
    videos = reader()
    with pytest.raises(FileNotFoundError):
        videos.size(tmp_path / "none.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UnreadableVideo, match=r"bad\.mp4: InvalidDataError"):
        videos.size(tmp_path / "bad.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableVideo, match="no frames"):
        videos.size(tmp_path / "empty")
    assert videos.size(write_video(tmp_path / "a.mp4", 3, rate=1)) == (3, 1, 48, 64)


def test_frames_of_any_kind_are_taken_in_one_order_and_hidden_files_never(tmp_path, reader):
    for number, name in ((3, "3.tif"), (10, "10.jpg"), (1, "1.JPG_large"), (2, "2.gif"), (4, "4"), (99, ".0.png")):
        kind = {".tif": "TIFF", ".gif": "GIF", "": "PNG"}.get(Path(name).suffix, "JPEG")
        Image.new("RGB", (8, 8), (number * 20,) * 3).save(tmp_path / name, kind)
    (tmp_path / "times.txt").write_text("0 1 2")
    assert reader().size(tmp_path)[0] == 5
    taken = reader().frames(tmp_path, 8)[:, 0, 0, 0] / 20
    assert taken.round().tolist() == [1, 2, 3, 4, 10]
    (tmp_path / "inner").mkdir()
    with pytest.raises(UnreadableVideo, match="the folder inner lies among its frames"):
        reader().size(tmp_path)


@pytest.mark.parametrize(
    ("name", "num_frames", "options"),
    [
        ("one.mp4", 1, {}),
        ("uneven.mp4", 12, {"uneven": True}),
        ("many.mp4", 30, {"codec": "libx264"}),
        ("length_untold.h264", 20, {"codec": "libx264", "format": "h264"}),
        ("length_untold.mkv", 20, {"format": "matroska", "options": {"live": "1"}}),
        ("parts.mp4", 20, {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("web.webm", 20, {"codec": "libvpx"}),
        ("old.avi", 20, {}),
        ("old.flv", 20, {"codec": "flv1"}),
        ("stream.ts", 20, {"codec": "libx264"}),
    ],
)
def test_frames_are_as_many_as_the_size_says(tmp_path, placed, all_frames, name, num_frames, options):
    """Of one frame, of uneven rate, with and without a length in the container."""
    file = placed(name, write_video(tmp_path / ("own_" + name), num_frames, 8, **options).read_bytes())
    frames, _, height, width = all_frames.size(file)
    assert (frames, height, width) == (num_frames, 48, 64)
    brightness = all_frames.frames(file, 16).mean((1, 2, 3))
    assert np.abs(brightness - 8 * np.arange(num_frames)).max() < 6


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_damage_in_the_middle_is_refused_by_name(tmp_path, placed, all_frames, codec):
    content = write_video(tmp_path / "whole.mp4", 40, 8, codec).read_bytes()
    middle = (content.index(b"mdat") + content.index(b"moov")) // 2
    file = placed("damaged.mp4", content[:middle] + bytes(150) + content[middle + 150 :])
    assert all_frames.size(file)[0] == 40
    with pytest.raises(UnreadableVideo, match=r"damaged\.mp4.*Invalid data"):
        all_frames.frames(file, 16)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("empty", "InvalidDataError"),
        ("text", "InvalidDataError"),
        ("half", "InvalidDataError"),
        ("cut_off", r"truncated: \d+ bytes of at least \d+"),
        ("picture_cut_off", "truncated or damaged after 19 frames"),
        ("sound", "no video stream"),
        ("no_frames", "no frames"),
    ],
)
def test_what_is_no_whole_video_is_refused_by_name(tmp_path, placed, all_frames, name, problem):
    whole = write_video(tmp_path / "whole.mp4", 20, 8).read_bytes()
    front = write_video(tmp_path / "front.mp4", 20, 8, options={"movflags": "faststart"}).read_bytes()
    parts = write_video(tmp_path / "parts.mp4", 20, 8, options={"movflags": "empty_moov+frag_every_frame"}).read_bytes()
    contents = {
        "empty": b"",
        "text": b"no video",
        "half": whole[: len(whole) // 2],
        "cut_off": front[: len(front) * 2 // 3],
        "picture_cut_off": parts[: parts.rindex(b"mdat") + 12],
        "sound": write_sound(tmp_path / "sound.mp4").read_bytes(),
        "no_frames": parts[: parts.index(b"moof") - 4],
    }
    file = placed(f"{name}.mp4", contents[name])
    for read in (all_frames.size, lambda file: all_frames.frames(file, 16)):
        with pytest.raises(UnreadableVideo, match=rf"{name}\.mp4.*: {problem}|{name}\.mp4.*: ValueError: {problem}"):
            read(file)


def test_frames_that_cannot_be_decoded_are_named(tmp_path):
    place = (str(write_video(tmp_path / "a.mp4", 5, rate=1)), 0, -1, None)
    with pytest.raises(ValueError, match="frame 6 of 7 cannot be decoded"):
        by_pyav(place, look(place)._replace(frames=7), [0, 6])
    assert by_decord(place, look(place)._replace(frames=7), [0, 4]) is None


def stand_in(tmp_path: Path, monkeypatch, behaviour: str) -> Path:
    """A decoder that behaves as told on a file called bad.mp4 and answers (1, 2, 3) on others."""
    script = tmp_path / "decoder.py"
    script.write_text(
        "import os, sys, time\nfrom multiprocessing.connection import Connection\n"
        "connection = Connection(int(sys.argv[1]))\nconnection.send(('ok', 'ready'))\n"
        f"while True:\n    path = connection.recv()[0][0]\n    if path.endswith('bad.mp4'): {behaviour}\n"
        "    connection.send(('ok', (1, 2, 3)))\n"
    )
    monkeypatch.setattr(video_process, "__file__", str(script))
    for name in ("bad.mp4", "good.mp4"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_hanging_decoder_is_ended_after_the_time_limit(tmp_path, monkeypatch, reader):
    folder = stand_in(tmp_path, monkeypatch, "time.sleep(1000)")
    videos = reader(timeout=0.5)
    start = time.monotonic()
    with pytest.raises(UnreadableVideo, match=r"bad\.mp4: not decoded within 0\.5 s \(data\.decode_timeout\)"):
        videos.size(folder / "bad.mp4")
    assert time.monotonic() - start < 30
    assert videos.size(folder / "good.mp4") == (1, 2, 3)


def test_crashing_decoder_is_replaced(tmp_path, monkeypatch, reader):
    folder = stand_in(tmp_path, monkeypatch, "os.abort()")
    videos = reader()
    with pytest.raises(UnreadableVideo, match=r"bad\.mp4: the decoder crashed with code -6"):
        videos.size(folder / "bad.mp4")
    assert videos.size(folder / "good.mp4") == (1, 2, 3)


def test_one_process_serves_many_videos_and_a_copy_starts_its_own(tmp_path, reader):
    path = write_video(tmp_path / "a.mp4", 32, rate=8)
    videos = reader(fps=8, max_frames=8)
    videos.frames(path, 32)
    process = videos._worker
    for _ in range(3):
        videos.frames(path, 32)
    assert videos._worker is process
    copy = pickle.loads(pickle.dumps(videos))
    assert copy.size(path) == (32, 8, 48, 64)
    assert copy._worker is not process
    copy.close()


def test_forked_process_starts_its_own(tmp_path, reader):
    """Two processes on one connection would read each other's answers."""
    path = write_video(tmp_path / "a.mp4", 3, rate=1)
    videos = reader()
    videos.size(path)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def ask() -> None:
        answers.put((videos.size(path), videos._worker._process.pid))
        videos.close()

    child = context.Process(target=ask)
    child.start()
    size, pid = answers.get()
    child.join()
    assert size == videos.size(path) == (3, 1, 48, 64)
    assert pid != videos._worker._process.pid


def test_what_is_no_file_is_missing(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.mp4")
    videos = reader()
    for file in (tmp_path / "pipe.mp4", PackedFile(tmp_path / "none.tar", 0, 9, "1.mp4")):
        with pytest.raises(FileNotFoundError, match="no such file"):
            videos.size(file)
    (tmp_path / "a.tar").write_bytes(b"short")
    with pytest.raises(UnreadableVideo, match="ends before it does"):
        videos.size(PackedFile(tmp_path / "a.tar", 0, 9, "1.mp4"))
