"""Images: sizes from headers, and RGB pixels. What becomes of unusual files is said in docs/data.md."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from llava_train.records.media_file import MediaFile, open_medium

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # by content; none that starts another program
PNG_SIGNATURE, PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


T = TypeVar("T")


class UnreadableImage(ValueError):
    """A file that is no whole image, or one beyond the pixel limit."""


def image_size(file: MediaFile) -> tuple[int, int]:
    """(height, width) as stored, from the header alone: an EXIF rotation is ignored, as in training of the original.

    Raises FileNotFoundError, UnreadableImage.
    """
    return _read(file, lambda image: (image.height, image.width))


def open_image(file: MediaFile, max_pixels: int) -> Image.Image:
    """The decoded image in RGB, the first where a file holds several. Raises FileNotFoundError, UnreadableImage."""

    def decoded(image: Image.Image) -> Image.Image:
        if image.width * image.height > max_pixels:
            raise UnreadableImage(f"{file}: {too_many_pixels(image.height, image.width, max_pixels)}")
        return _to_rgb(image)

    return _read(file, decoded)


def too_many_pixels(height: int, width: int, max_pixels: int) -> str:
    return f"{width} x {height} pixels, data.max_pixels is {max_pixels}: scale it down, or raise the limit"


def _read(file: MediaFile, act: Callable[[Image.Image], T]) -> T:
    """What `act` makes of the open image. Pillow refuses a PNG for texts or a colour profile that unpack to more than a
    limit of its own: such a file is read without them, since nothing here uses them."""
    try:
        with _opened(file) as image:
            return act(image)
    except UnreadableImage as error:
        if not isinstance(error.__cause__, ValueError):
            raise
    with _opened(file, _without_texts) as image:
        return act(image)


def _without_texts(content: BinaryIO) -> BinaryIO:
    """A PNG without its chunks of texts and of the profile; anything else as it is."""
    whole = content.read()
    if not whole.startswith(PNG_SIGNATURE):
        return io.BytesIO(whole)
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(whole):
        end = start + 12 + int.from_bytes(whole[start : start + 4], "big")  # size, kind and checksum, 4 bytes each
        if whole[start + 4 : start + 8] not in PNG_TEXTS:
            kept.append(whole[start:end])
        start = end
    return io.BytesIO(b"".join(kept))


@contextmanager
def _opened(
    file: MediaFile, convert: Callable[[BinaryIO], BinaryIO] = lambda content: content
) -> Iterator[Image.Image]:
    Image.MAX_IMAGE_PIXELS = None  # the limit is data.max_pixels, of which the header is asked
    try:
        with open_medium(file) as content, Image.open(convert(content), formats=FORMATS) as image:
            if not image.width * image.height:
                raise UnreadableImage(f"{file}: {image.width} x {image.height} pixels")
            yield image
    except (FileNotFoundError, UnreadableImage):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{file}: is no {', '.join(FORMATS)} by its content") from error
    except Exception as error:  # whatever a decoder raises: this image cannot be read
        told = isinstance(error, OSError) and error.strerror  # of the file system, without the path once more
        raise UnreadableImage(f"{file}: {told or f'{type(error).__name__}: {error}'}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """As Pillow converts, but for grey of 16 bits, which that would clip to white: the high byte, as of colour."""
    if image.mode == "RGB":
        image.load()
        return image  # convert would copy it
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no stated range: save it in 8 or 16 bits")
    return image.convert("RGB")
