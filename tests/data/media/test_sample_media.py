"""The media of a sample: sizes by headers alone, layouts in closed form, limits by name, files that changed since."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from llava_train.config.schema import VideoConfig
from llava_train.data.media.sample_media import Limits, MediaReader, MediumSize
from llava_train.data.media.video import VideoReader
from llava_train.data.samples.sample import Sample, Turn
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.records.media_file import MediaFile
from llava_train.shared.errors import DataError

GEOMETRY = OneVisionGeometry(32, 8, "anyres", ((1, 1), (1, 2), (2, 1), (2, 2)), 9)


@pytest.fixture(scope="module")
def videos():
    reader = VideoReader(VideoConfig(fps=2, max_frames=4), 60, 10**8)
    yield reader
    reader.close()


def of(images: list[MediaFile] | None = None, videos: list[MediaFile] | None = None, **fields) -> Sample:
    images, videos = images or [], videos or []
    text = "<image>" * len(images) + "<video>" * len(videos)
    return Sample("7", "shapes", [Turn("human", text), Turn("gpt", "yes")], images, videos, "3", **fields)


def write_image(path: Path, width: int, height: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_video(path: Path, num_frames: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            pixels = np.full((48, 64, 3), 8 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_frames(folder: Path, num_frames: int) -> Path:
    folder.mkdir()
    for i in range(num_frames):
        write_image(folder / f"{i}.png", 20, 10)
    return folder


def test_sizes_are_those_of_headers_whatever_is_taken(tmp_path, videos):
    sample = of([write_image(tmp_path / "a.png", 40, 20)], [write_video(tmp_path / "a.mp4", 20)])
    sample = Sample(**{**vars(sample), "videos": [*sample.videos, write_frames(tmp_path / "frames", 6)]})
    sample.turns[0] = Turn("human", "<video><image><video>")
    sizes = MediaReader(GEOMETRY, videos, Limits(1, 1, 1)).sizes(sample)
    assert sizes[:2] == [MediumSize("video", 48, 64, 20, 8), MediumSize("image", 20, 40, 1, sizes[1].fps)]
    assert (*sizes[2][:4], math.isnan(sizes[2].fps)) == ("video", 10, 20, 6, True)


def test_layouts_count_the_tiles_that_come(tmp_path, placed, videos):
    reader = MediaReader(GEOMETRY, videos, Limits(10**8))
    image = placed("a.png", write_image(tmp_path / "own.png", 40, 20).read_bytes())
    video = placed("a.mp4", write_video(tmp_path / "own.mp4", 20).read_bytes())
    folder = write_frames(tmp_path / "frames", 6)
    for sample, tiles in [(of([image]), 3), (of([image, image]), 2), (of([image], [video, folder]), 3 + 4 + 4)]:
        layouts = reader.layouts(sample)
        assert layouts == reader.layouts_of(reader.sizes(sample))
        assert sum(layout.num_tiles for layout in layouts) == tiles
        assert reader.tiles(sample, layouts).shape == (tiles, 3, 32, 32)


@pytest.mark.parametrize(
    ("limits", "reason", "detail"),
    [
        (Limits(799), "too many pixels", r"medium 1: 40 x 20 pixels, data\.max_pixels is 799: scale it down, or raise"),
        (Limits(800, 20), "too many pixels", r"medium 3: 64 x 48 pixels, data\.max_pixels is 800"),
        (Limits(4000, 19), "too many frames", r"medium 3: 20 frames, data\.max_frames is 19: cut the video, or raise"),
        (
            Limits(4000, 20, 2),
            "too many media",
            r"3 images and videos, data\.max_media is 2: split the sample, or raise",
        ),
    ],
)
def test_media_beyond_a_limit_are_refused_with_the_remedy(tmp_path, videos, limits, reason, detail):
    image = write_image(tmp_path / "a.png", 40, 20)
    sample = of([image, image], [write_video(tmp_path / "a.mp4", 20)])
    with pytest.raises(DataError, match=detail) as error:
        MediaReader(GEOMETRY, videos, limits).layouts(sample)
    assert (error.value.source, error.value.record, error.value.reason) == ("shapes", "3", reason)
    assert MediaReader(GEOMETRY, videos, Limits(4000, 20, 3)).layouts(sample)


def test_stated_sizes_stand_in_for_files_until_they_are_read(tmp_path, videos):
    reader = MediaReader(GEOMETRY, videos, Limits(10**8))
    sample = of([tmp_path / "a.png", tmp_path / "b.png"], sizes=((20, 40), (7, 9)))
    layouts = reader.layouts(sample)
    assert [(layout.height, layout.width) for layout in layouts] == [(20, 40), (7, 9)]
    write_image(tmp_path / "a.png", 40, 20)
    write_image(tmp_path / "b.png", 9, 8)
    with pytest.raises(DataError, match=r"changed file.*b\.png: 9 x 8 pixels, 9 x 7 when it was indexed"):
        reader.tiles(sample, layouts)


def test_video_with_other_frames_than_indexed_is_refused(tmp_path, videos):
    reader = MediaReader(GEOMETRY, videos, Limits(10**8))
    sample = of(videos=[write_video(tmp_path / "a.mp4", 20)])
    layouts = reader.layouts(sample)
    write_video(tmp_path / "a.mp4", 8)
    with pytest.raises(DataError, match=r"changed file.*a\.mp4: 2 frames to take, 4 when it was indexed"):
        reader.tiles(sample, layouts)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.png", "missing file"),
        ("none.mp4", "missing file"),
        ("bad.png", "unreadable image"),
        ("bad.mp4", "unreadable video"),
        ("a" * 300 + ".png", "unreadable image"),
        ("a" * 300 + ".mp4", "unreadable video"),
    ],
)
def test_unreadable_files_are_told_by_source_and_record(tmp_path, videos, name, reason):
    if name.startswith("bad"):
        (tmp_path / name).write_bytes(b"")
    kind = "videos" if name.endswith("mp4") else "images"
    with pytest.raises(DataError, match=name) as error:
        MediaReader(GEOMETRY, videos, Limits(10**8)).sizes(of(**{kind: [tmp_path / name]}))
    assert (error.value.source, error.value.record, error.value.reason) == ("shapes", "3", reason)


def test_a_folder_of_frames_that_may_not_be_read_is_one_bad_sample(tmp_path, videos, monkeypatch):
    def denied(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    write_frames(tmp_path / "frames", 2)
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(DataError, match=r"unreadable video \(.*frames: Permission denied\)"):
        MediaReader(GEOMETRY, videos, Limits(10**8)).sizes(of(videos=[tmp_path / "frames"]))
