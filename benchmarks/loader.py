"""Images and videos per second of one core: a file to uint8 tiles, beside others on the same files, in turn.

usage: OMP_NUM_THREADS=1 python benchmarks/loader.py [FOLDER] [ROUNDS]

Images: made-up photographs of usual sizes as JPEG, beside transformers' image processor (the PIL class), which gives
the same pixels as float32; of both most is Pillow's bicubic scaling, which equal pixels need. Videos: H.264 of 10 s and
of 5 minutes, beside decord alone, which gives the same frames unscaled. A figure is the best of the rounds, in each of
which every reader reads every file once, one after the other.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import decord
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava_train.config.schema import VideoConfig
from llava_train.data.media.image import open_image
from llava_train.data.media.video import VideoReader
from llava_train.data.media.video_process import sample_indices
from llava_train.family.onevision.geometry import OneVisionGeometry

IMAGES = [(336, 336), (427, 640), (480, 640), (640, 480), (600, 800), (768, 1024), (1000, 700), (1080, 1920)]
VIDEOS = [(240, 320, 10), (360, 640, 10), (240, 320, 300)]  # height, width, seconds
RATE, MAX_FRAMES = 25, 32
GRID = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
GEOMETRY = OneVisionGeometry(384, 14, "anyres", GRID, 9)
NO_LIMIT = 10**9
Reader = Callable[[Path], object]


def photograph(height: int, width: int, shift: int = 0) -> Image.Image:
    """Blobs of many sizes with a little noise, about as hard to compress as a photograph."""
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 128.0)
    for scale in (128, 32, 8, 2):
        shape = (height // scale + 2, width // scale + 2)
        for channel in range(3):
            blobs = Image.fromarray(rng.normal(0, 6 * scale**0.5, shape).astype(np.float32))
            pixels[..., channel] += np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.roll(np.clip(pixels, 0, 255).astype(np.uint8), shift, axis=1))


def write_video(path: Path, height: int, width: int, seconds: int) -> None:
    frame = np.asarray(photograph(height, width))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for shift in range(RATE * seconds):
            rolled = np.ascontiguousarray(np.roll(frame, shift, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rolled, format="rgb24")))
        container.mux(stream.encode(None))


def best_seconds(files: list[Path], readers: dict[str, Reader], rounds: int) -> dict[str, list[float]]:
    """Of each reader and file, in interleaved rounds."""
    seconds = {name: [float("inf")] * len(files) for name in readers}
    for _ in range(rounds):
        for number, file in enumerate(files):
            for name, read in readers.items():
                start = time.perf_counter()
                read(file)
                seconds[name][number] = min(seconds[name][number], time.perf_counter() - start)
    return seconds


def report(title: str, labels: list[str], seconds: dict[str, list[float]]) -> None:
    ours, other = seconds
    table = Table("", f"{ours}, per second", f"{other}, per second", "ratio", title=title)
    rows = [*zip(labels, seconds[ours], seconds[other], strict=True)]
    rows.append(("one of each", sum(seconds[ours]) / len(rows), sum(seconds[other]) / len(labels)))
    for label, mine, its in rows:
        table.add_row(label, f"{1 / mine:.1f}", f"{1 / its:.1f}", f"{its / mine:.2f}")
    Console(width=100).print(table)


def images(folder: Path, rounds: int) -> None:
    files = [folder / f"{height}x{width}.jpg" for height, width in IMAGES]
    for file, size in zip(files, IMAGES, strict=True):
        photograph(*size).save(file, quality=88)
    processor = LlavaOnevisionImageProcessorPil(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"height": GEOMETRY.tile_size, "width": GEOMETRY.tile_size},
        image_grid_pinpoints=GEOMETRY.pinpoints(),
    )

    def ours(file: Path) -> np.ndarray:
        image = open_image(file, NO_LIMIT)
        layout = GEOMETRY.image(image.height, image.width)
        tiles = np.empty((layout.num_tiles, 3, GEOMETRY.tile_size, GEOMETRY.tile_size), np.uint8)
        GEOMETRY.cut(image, layout, tiles)
        return tiles

    def theirs(file: Path) -> np.ndarray:
        return processor(Image.open(file).convert("RGB"), return_tensors="np")["pixel_values"][0]

    for file in files:
        pixels = np.rint((theirs(file) * 0.5 + 0.5) * 255)
        assert np.array_equal(ours(file), pixels), file
    seconds = best_seconds(files, {"llava_train": ours, "transformers": theirs}, rounds)
    report("images, JPEG to tiles", [file.stem for file in files], seconds)


def videos(folder: Path, rounds: int) -> None:
    files = [folder / f"{height}x{width}, {seconds} s.mp4" for height, width, seconds in VIDEOS]
    for file, size in zip(files, VIDEOS, strict=True):
        write_video(file, *size)
    reader = VideoReader(VideoConfig(1.0, MAX_FRAMES), 600.0, NO_LIMIT)

    def ours(file: Path) -> np.ndarray:
        return reader.frames(file, GEOMETRY.tile_size)

    def alone(file: Path) -> np.ndarray:
        video = decord.VideoReader(str(file), num_threads=1)
        return video.get_batch(sample_indices(len(video), video.get_avg_fps(), 1.0, MAX_FRAMES)).asnumpy()

    seconds = best_seconds(files, {"llava_train": ours, "decord": alone}, rounds)
    reader.close()
    report(f"videos, a frame of each second, at most {MAX_FRAMES}", [file.stem for file in files], seconds)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
        images(folder, rounds)
        videos(folder, rounds)


if __name__ == "__main__":
    main()
