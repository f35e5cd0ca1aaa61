"""The media of a sample, in the reading order of their tags: layouts from headers, tiles from pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from llava_train.batch.packed import VisualLayout
from llava_train.config.schema import DataConfig, VideoConfig
from llava_train.data.image import UnreadableImage, image_size, open_image, to_tiles
from llava_train.data.sample import Sample
from llava_train.data.video import UnreadableVideo, VideoReader
from llava_train.family.onevision.geometry import Geometry


class MediaReader:
    """Opens images and videos by one geometry; picklable, each process decodes by itself."""

    def __init__(self, geometry: Geometry, videos: VideoReader, max_pixels: int):
        self.geometry = geometry
        self._videos, self._max_pixels = videos, max_pixels

    def layouts(self, sample: Sample) -> list[VisualLayout]:
        """One layout per medium, no pixel decoded. Raises DataError: tag/media mismatch, missing or unreadable file."""
        media = sample.media()
        with _named(sample):
            sizes = [image_size(medium.file, self._max_pixels) for medium in media if medium.kind == "image"]
            images = iter(self.geometry.images(sizes))
            return [
                next(images) if medium.kind == "image" else self.geometry.video(*self._videos.size(medium.file))
                for medium in media
            ]

    def tiles(self, sample: Sample, layouts: Sequence[VisualLayout]) -> np.ndarray:
        """uint8 [tiles, 3, S, S] of all media. Raises DataError as `layouts` does, and for a changed file."""
        size = self.geometry.tile_size
        tiles = [np.zeros((0, 3, size, size), dtype=np.uint8)]
        for medium, layout in zip(sample.media(), layouts, strict=True):
            with _named(sample):
                if medium.kind == "video":
                    new = self._videos.frames(medium.file, size)
                    found = (len(new), layout.height, layout.width)
                else:
                    image = open_image(medium.file, self._max_pixels)
                    found = (layout.grid[0], image.height, image.width)
            if found != (layout.grid[0], layout.height, layout.width):
                raise sample.error("changed file", f"{medium.file} is {found}, the layout says {layout}")
            tiles.append(new if medium.kind == "video" else to_tiles(image, layout, self.geometry))
        return np.concatenate(tiles)


def make_media_reader(data: DataConfig, video: VideoConfig, geometry: Geometry) -> MediaReader:
    return MediaReader(geometry, make_video_reader(data, video), data.max_pixels)


def make_video_reader(data: DataConfig, video: VideoConfig) -> VideoReader:
    return VideoReader(video, data.decode_timeout, data.max_pixels)


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
