"""The media of a sample, in the reading order of their tags: sizes by headers, layouts by sizes, tiles by pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llava_train.config.schema import DataConfig, VideoConfig
from llava_train.data.media.image import UnreadableImage, image_size, open_image, too_many_pixels
from llava_train.data.media.video import UnreadableVideo, VideoReader
from llava_train.data.samples.sample import Sample
from llava_train.family.base import Geometry, MediumShape, VisualLayout
from llava_train.records.tags import MediumKind


class MediumSize(NamedTuple):
    """What the header of an image or video says, whatever is made of it."""

    kind: MediumKind
    height: int
    width: int
    frames: int = 1  # of a video: all that the file holds
    fps: float = math.nan  # nan: every frame is taken, as of a folder of frames


@dataclass(frozen=True)
class Limits:
    """Of `data`: pixels of one image or frame, frames of one video, media of one sample."""

    max_pixels: int
    max_frames: float = math.inf
    max_media: float = math.inf

    def refusal(self, sizes: Sequence[MediumSize]) -> tuple[str, str] | None:
        """(reason, detail) where the media of a sample exceed a limit."""
        if len(sizes) > self.max_media:
            told = f"{len(sizes)} images and videos, data.max_media is {self.max_media}"
            return "too many media", f"{told}: split the sample, or raise the limit"
        for number, size in enumerate(sizes, 1):
            if size.height * size.width > self.max_pixels:
                return (
                    "too many pixels",
                    f"medium {number}: {too_many_pixels(size.height, size.width, self.max_pixels)}",
                )
            if size.frames > self.max_frames:
                told = f"{size.frames} frames, data.max_frames is {self.max_frames}"
                return "too many frames", f"medium {number}: {told}: cut the video, or raise the limit"
        return None


class MediaReader:
    """Opens images and videos by one geometry; picklable, each process decodes by itself."""

    def __init__(self, geometry: Geometry, videos: VideoReader, limits: Limits):
        self.geometry = geometry
        self._videos, self._limits = videos, limits

    def sizes(self, sample: Sample) -> list[MediumSize]:
        """One per medium, no pixel decoded; of images those that the sample states, where it does.

        Depends on neither geometry nor limits. Raises DataError: tag/media mismatch, missing or unreadable file.
        """
        return media_sizes(sample, self._videos)

    def layouts(self, sample: Sample) -> list[VisualLayout]:
        """Those of its sizes. Raises DataError as `sizes` does, and beyond a limit."""
        sizes = self.sizes(sample)
        if refusal := self.refusal(sizes):
            raise sample.error(*refusal)
        return self.layouts_of(sizes)

    def refusal(self, sizes: Sequence[MediumSize]) -> tuple[str, str] | None:
        """(reason, detail) where the media of a sample exceed a limit."""
        return self._limits.refusal(sizes)

    def layouts_of(self, sizes: Sequence[MediumSize]) -> list[VisualLayout]:
        """One layout per medium, in closed form, whatever the limits."""
        taken = [self.num_taken(size.frames, size.fps) if size.kind == "video" else 1 for size in sizes]
        shapes = zip(sizes, taken, strict=True)
        return self.geometry.layouts([MediumShape(s.kind, s.height, s.width, frames) for s, frames in shapes])

    def num_taken(self, frames: int, fps: float) -> int:
        """How many frames are taken of a video with so many, at that rate."""
        return self._videos.num_taken(frames, fps)

    def tiles(self, sample: Sample, layouts: Sequence[VisualLayout]) -> np.ndarray:
        """uint8 [tiles, 3, S, S] of all media. Raises DataError as `layouts` does, and for a changed file."""
        size = self.geometry.tile_size
        tiles = np.empty((sum(layout.num_tiles for layout in layouts), 3, size, size), dtype=np.uint8)
        filled = 0
        for medium, layout in zip(sample.media(), layouts, strict=True):
            out = tiles[filled : filled + layout.num_tiles]
            filled += layout.num_tiles
            with _named(sample):
                if medium.kind == "video":
                    frames = self._videos.frames(medium.file, size)
                    if len(frames) != len(out):
                        raise _Changed(f"{medium.file}: {len(frames)} frames to take, {len(out)} when it was indexed")
                    out[:] = frames
                else:
                    image = open_image(medium.file, self._limits.max_pixels)
                    if (image.height, image.width) != (layout.height, layout.width):
                        told = f"{layout.width} x {layout.height} when it was indexed"
                        raise _Changed(f"{medium.file}: {image.width} x {image.height} pixels, {told}")
                    self.geometry.cut(image, layout, out)
        return tiles


def media_sizes(sample: Sample, videos: VideoReader) -> list[MediumSize]:
    """See `MediaReader.sizes`."""
    media, stated = sample.media(), iter(sample.sizes)
    sizes = []
    for kind, file in media:
        with _named(sample):
            if kind == "video":
                frames, fps, height, width = videos.size(file)
                sizes.append(MediumSize(kind, height, width, frames, fps))
            else:
                sizes.append(MediumSize(kind, *(next(stated) if sample.sizes else image_size(file))))
    return sizes


def make_limits(data: DataConfig) -> Limits:
    return Limits(data.max_pixels, data.max_frames, data.max_media)


def make_media_reader(data: DataConfig, video: VideoConfig, geometry: Geometry) -> MediaReader:
    return MediaReader(geometry, make_video_reader(data, video), make_limits(data))


def make_video_reader(data: DataConfig, video: VideoConfig) -> VideoReader:
    return VideoReader(video, data.decode_timeout, data.max_pixels, data.video_decoder)


class _Changed(ValueError):
    pass


@contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """Turns what a file raises into a DataError that names the sample."""
    try:
        yield
    except FileNotFoundError as error:
        raise sample.error("missing file", str(error)) from error
    except UnreadableImage as error:
        raise sample.error("unreadable image", str(error)) from error
    except UnreadableVideo as error:
        raise sample.error("unreadable video", str(error)) from error
    except _Changed as error:
        raise sample.error("changed file", str(error)) from error
