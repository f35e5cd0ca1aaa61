"""Makes data/tiny: a handful of pictures, one clip, one folder of frames and records of every kind, for tests.

    python data/scripts/make_tiny.py [FOLDER]

All pictures are drawn here, from formulas; the folder holds nobody else's work.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200), "yellow": (220, 200, 40)}
SIZES = {"red": (64, 64), "green": (96, 48), "blue": (40, 80), "yellow": (33, 57)}  # width, height


def main(folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        picture(*SIZES[name], colour, "ellipse").save(folder / "images" / f"{name}_disc.png", optimize=True)
    for name in ("red", "blue"):
        picture(64, 64, COLOURS[name], "rectangle").save(folder / "images" / f"{name}_box.png", optimize=True)
    clip(folder / "clip.mp4")
    frames(folder / "frames")
    (folder / "tiny.json").write_text(json.dumps(records(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def picture(width: int, height: int, colour: tuple[int, int, int], shape: str) -> Image.Image:
    image = Image.new("RGB", (width, height), (235, 235, 230))
    box = (width // 5, height // 5, width - width // 5, height - height // 5)
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return image


def clip(path: Path) -> None:
    """Two seconds, 4 frames each: first red, then blue."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for name in ["red"] * 4 + ["blue"] * 4:
            pixels = np.asarray(picture(64, 48, COLOURS[name], "ellipse"))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def frames(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(["yellow", "green", "blue"]):
        picture(48, 48, COLOURS[name], "rectangle").save(folder / f"frame_{i:02d}.png", optimize=True)


def records() -> list[dict[str, Any]]:
    """One image each first, then every other kind of record."""
    single = [
        sample(f"image-{path}", ["<image>\nWhat is shown?", f"a {path.replace('_', ' ')}"], image=f"images/{path}.png")
        for path in [*(f"{name}_disc" for name in COLOURS), "red_box", "blue_box"]
    ]
    turns = ["<image>\nWhich colour?", "red", "Which shape?", "a disc"]
    system = {"from": "system", "value": "Answer with one word."}
    several = ["images/red_disc.png", "images/green_disc.png", "images/blue_box.png"]
    boxes = ["images/red_box.png", "images/blue_box.png"]
    return [
        *single,
        sample("text", ["Name a colour.", "blue"]),
        sample("text-tag", ["What does the tag <image> stand for?", "a picture"]),
        sample("turns", turns, image="images/red_disc.png"),
        sample("system", ["<image>\nWhich colour?", "yellow"], image="images/yellow_disc.png", first=system),
        sample(
            "several",
            ["image 1: <image>\nimage 2: <image>\nimage 3: <image>\nList the colours.", "red green blue"],
            image=several,
        ),
        sample("clip", ["<video>\nWhich colours appear?", "red, then blue"], video="clip.mp4"),
        sample("frames", ["<image>\nWhich colours appear?", "yellow, green, blue"], video="frames"),
        sample("both", ["<image>\n<video>\nWhich is red?", "both"], image="images/red_box.png", video="clip.mp4"),
        sample("across", ["<image>\nWhat is this?", "a red box", "<image>\nAnd this?", "a blue box"], image=boxes),
        sample("chinese", ["<image>\n这是什么颜色？", "蓝色"], image="images/blue_box.png"),
        sample("middle", ["Look at <image> and name it.", "a green disc"], image="images/green_disc.png"),
    ]


def sample(name: str, texts: list[str], first: dict[str, str] | None = None, **media: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": name, **media, "conversations": [*([first] if first else []), *turns]}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "tiny")
