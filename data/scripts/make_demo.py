"""Make the demo's data: pictures, clips and LLaVA JSON files from easy-vqa and the handwritten digits of OpenCV.

    python data/scripts/make_demo.py --seed 0

Enters: the installed `easy-vqa` package (coloured shapes with questions, split in train and test by its author) and
`data/demo/digits.png` (5,000 digits, 100 columns: columns 0-79 are for training, 80-99 held out).
Leaves, in data/cache/demo/seed0:

    shapes/{train,test}/N.png        64x64, one shape each, copied
    digits/{train,test}/D_NNN.png    64x64, one handwritten digit D each
    videos/{train,test}/N.mp4        64x64, 8 frames a second, four different digits one after the other
    *.json                           training records, one file per source of the demo's mixtures
    heldout/{shapes,multi_image,video}.json   questions of the test parts alone; the last turn is the reference answer

The folder appears whole or not at all, and is left alone if it is there and was made by this very script and seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import av
import easy_vqa
import numpy as np
from PIL import Image

DIGITS_PNG = Path(__file__).resolve().parents[1] / "demo" / "digits.png"
DIGITS_SHA256 = "60c917758ef97cc090f35cd8e293e4de691ef942847da0ff80dedab33d57c662"
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
LIST_QUESTION = "list the digits in order."
CAPTION_QUESTION = "Describe the picture."
DETAIL_QUESTION = "Describe the picture in detail."

NUM_LISTS = 4000  # training records of four digit pictures
NUM_VIDEOS = 2500  # training clips
NUM_HELD_OUT = 500  # questions of each held-out task
NUM_TEXTS = 8000  # training records without media
MAX_TURNS = 5  # questions about one picture in one record
MAX_TEXT_TURNS = 3
FRAME_RATE = 8
HELD_OUT_PACE = (8, 8, 8, 8)  # frames that each digit of a held-out clip is shown

Record = dict[str, Any]
Cells = dict[int, list[str]]  # digit -> its picture files, relative to the data folder


def default_folder(seed: int) -> Path:
    """Where the recipe `demo` looks for the data of `run.seed`, from the root of the checkout."""
    return Path("data") / "cache" / "demo" / f"seed{seed}"


def say(text: str) -> None:
    print(f"demo data: {text}", flush=True)


@contextmanager
def whole_or_absent(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `folder` only when the body has ended well."""
    scratch = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)


def fingerprint(script: Path, **settings: object) -> str:
    """What made a folder: the script's own text and its settings. Kept in the folder as `made_by.json`."""
    return json.dumps({"sha256": hashlib.sha256(script.read_bytes()).hexdigest(), **settings}, sort_keys=True)


def is_made(folder: Path, made_by: str) -> bool:
    note = folder / "made_by.json"
    return note.is_file() and note.read_text() == made_by


def write_json(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")


def record(name: str, media: dict[str, Any], *turns: tuple[str, str]) -> Record:
    """One LLaVA record: `media` is {"image": file or files} or {"video": file}, `turns` are questions with answers."""
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    return {"id": name, **media, "conversations": said}


# --- shapes


def shape_attributes(questions: list[tuple[str, str, int]]) -> dict[int, tuple[str, str]]:
    """Picture number -> (color, shape), for the pictures whose questions name both.

    "yes" to "is there a red shape?" names red, and so does "no" to "is there not a red shape?"; an open question names
    its answer. [("is no red shape present?", "no", 1), ("what shape is present?", "circle", 1)] ->
    {1: ("red", "circle")}.
    """
    named: dict[int, set[str]] = {}
    for question, answer, image in questions:
        words = set(question.rstrip("?").split())
        if answer == ("no" if words & {"not", "no"} else "yes") or answer not in ("yes", "no"):
            named.setdefault(image, set()).update(words & {*COLORS, *SHAPES}, {answer} - {"yes", "no"})
    pairs = {i: (sorted(words & set(COLORS)), sorted(words & set(SHAPES))) for i, words in named.items()}
    return {i: (color[0], shape[0]) for i, (color, shape) in sorted(pairs.items()) if color and shape}


def size_and_place(picture: Path) -> tuple[str, str]:
    """("small", "top left"): the longer side of the shape's box (< 22 pixels, < 28, above) and its quadrant."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(-1) > 90)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    side = max(bottom - top, right - left) + 1
    size = "small" if side < 22 else "medium" if side < 28 else "large"
    vertical = "top" if top + bottom < 63 else "bottom"
    return size, f"{vertical} {'left' if left + right < 63 else 'right'}"


def shape_records(source: Path, out: Path, rng: random.Random) -> dict[str, list[Record]]:
    """Copy the training pictures; -> records by file name."""
    shutil.copytree(source / "train" / "images", out / "shapes" / "train")
    questions = [(q, a, int(i)) for q, a, i in json.loads((source / "train" / "questions.json").read_text())]
    captions, details, dialogues = [], [], []
    for i, (color, shape) in shape_attributes(questions).items():
        image = {"image": f"shapes/train/{i}.png"}
        size, place = size_and_place(out / image["image"])
        caption, detail = f"a {color} {shape}.", f"a {size} {color} {shape} at the {place}."
        captions.append(record(f"shape-{i}", image, (f"<image>\n{CAPTION_QUESTION}", caption)))
        details.append(record(f"shape-detail-{i}", image, (f"<image>\n{DETAIL_QUESTION}", detail)))
    by_image: dict[int, list[tuple[str, str]]] = {}
    for question, answer, i in questions:
        by_image.setdefault(i, []).append((question, answer))
    for i, turns in sorted(by_image.items()):
        closed = [turn for turn in turns if turn[1] in ("yes", "no")]
        some = [turn for turn in turns if turn not in closed][: MAX_TURNS - 1]
        some += rng.sample(closed, min(len(closed), 1 if some else 2))
        rng.shuffle(some)
        some[0] = (f"<image>\n{some[0][0]}", some[0][1])
        dialogues.append(record(f"shape-questions-{i}", {"image": f"shapes/train/{i}.png"}, *some))
    return {"shape_captions": captions, "shape_details": details, "shape_questions": dialogues}


def held_out_shapes(source: Path, rng: random.Random) -> list[Record]:
    """Open questions about test pictures, one a record."""
    asked = [q for q in json.loads((source / "test" / "questions.json").read_text()) if q[1] not in ("yes", "no")]
    return [
        record(f"shape-{i}-{n}", {"image": f"shapes/test/{i}.png"}, (f"<image>\n{question}", answer))
        for n, (question, answer, i) in enumerate(rng.sample(asked, NUM_HELD_OUT))
    ]


# --- digits


def cut_digits(out: Path) -> dict[str, Cells]:
    """Write each 20x20 cell at 56x56 on a 64x64 black picture. Rows 5d to 5d+4 of the sheet hold digit d."""
    data = DIGITS_PNG.read_bytes()
    if hashlib.sha256(data).hexdigest() != DIGITS_SHA256:
        raise ValueError(f"{DIGITS_PNG} is not the expected sheet of digits (SHA-256 {DIGITS_SHA256})")
    sheet = Image.open(DIGITS_PNG).convert("L")
    cells: dict[str, Cells] = {"train": {}, "test": {}}
    for split in cells:
        (out / "digits" / split).mkdir(parents=True)
    for row in range(50):
        for column in range(100):
            split, digit = ("train" if column < 80 else "test"), row // 5
            cell = sheet.crop((20 * column, 20 * row, 20 * column + 20, 20 * row + 20))
            picture = Image.new("RGB", (64, 64))
            picture.paste(cell.resize((56, 56), Image.Resampling.BICUBIC).convert("RGB"), (4, 4))
            name = f"digits/{split}/{digit}_{row % 5 * 100 + column:03d}.png"
            picture.save(out / name, compress_level=1)
            cells[split].setdefault(digit, []).append(name)
    return cells


def draw_digits(cells: Cells, rng: random.Random) -> tuple[list[str], str]:
    """Four pictures of different digits and the answer that lists them, e.g. "3 1 9 4"."""
    digits = rng.sample(range(10), 4)
    return [rng.choice(cells[d]) for d in digits], " ".join(map(str, digits))


def digit_captions(cells: Cells) -> list[Record]:
    return [
        record(Path(f).stem, {"image": f}, (f"<image>\n{CAPTION_QUESTION}", f"a handwritten {digit}."))
        for digit, files in cells.items()
        for f in files
    ]


def digit_lists(split: str, cells: Cells, count: int, rng: random.Random) -> list[Record]:
    """Four pictures and the question, in turn with all pictures in front and with each named in its place."""
    prompts = ("<image>\n" * 4 + LIST_QUESTION, "".join(f"image {k}: <image>\n" for k in (1, 2, 3, 4)) + LIST_QUESTION)
    records = []
    for n in range(count):
        files, answer = draw_digits(cells, rng)
        records.append(record(f"list-{split}-{n}", {"image": files}, (prompts[n % 2], answer)))
    return records


# --- text alone: words stand where pictures will stand


def repeated(words: list[str], most: int, rng: random.Random) -> str:
    return " ".join(rng.sample(words * (times := rng.randint(1, most)), len(words) * times))


def text_list(rng: random.Random) -> tuple[str, str]:
    """("3 3\\n1 1\\n9 9\\n4 4\\nlist the digits in order.", "3 1 9 4"); or on one line, or as "image k: 3 3"."""
    digits = [str(d) for d in rng.sample(range(10), 4)]
    times = rng.choice((1, 1, 2, 3, 4, 6))
    blocks = [" ".join([d] * times) for d in digits]
    named = "".join(f"image {k}: {block}\n" for k, block in enumerate(blocks, 1))
    shown = rng.choice(("\n".join(blocks) + "\n", named, " ".join(blocks) + "\n"))
    return shown + LIST_QUESTION, " ".join(digits)


def text_records(files: dict[str, list[Record]], rng: random.Random) -> list[Record]:
    """Lists, captions and the training questions, each told in words: "teal rectangle teal rectangle" for a picture."""
    captions = {r["image"]: r["conversations"][1]["value"] for r in files["shape_captions"]}
    dialogues = [r for r in files["shape_questions"] if r["image"] in captions]
    records = []
    for n in range(NUM_TEXTS):
        kind = rng.random()
        if kind < 0.5:
            records.append(record(f"text-list-{n}", {}, text_list(rng)))
            continue
        asked = rng.choice(dialogues)
        caption = captions[asked["image"]]
        shown = repeated(caption.strip(".").split()[1:], 3, rng)
        if kind < 0.6:
            records.append(record(f"text-caption-{n}", {}, (f"{shown}\n{CAPTION_QUESTION}", caption)))
        else:
            first, *rest = asked["conversations"][: 2 * MAX_TEXT_TURNS]
            told = {**first, "value": first["value"].replace("<image>", shown)}
            records.append({"id": f"text-questions-{n}", "conversations": [told, *rest]})
    return records


# --- clips


def training_pace(rng: random.Random) -> tuple[int, ...]:
    """Frames that each digit is shown: mostly the held-out pace, else uneven, fast or slow."""
    kind = rng.random()
    if kind < 0.6:
        return HELD_OUT_PACE
    if kind < 0.8:
        return tuple(rng.randint(4, 12) for _ in range(4))
    return (rng.choice((4, 16, 16, 32)),) * 4


def encode_clip(frames: list[np.ndarray], path: Path) -> None:
    """Write uint8 [height, width, 3] frames as MPEG-4 at a constant high quality."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FRAME_RATE, options={"flags": "+qscale", "global_quality": "118"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def digit_videos(
    split: str,
    cells: Cells,
    count: int,
    rng: random.Random,
    out: Path,
    pace: Callable[[random.Random], tuple[int, ...]],
) -> list[Record]:
    (out / "videos" / split).mkdir(parents=True)
    records = []
    for n in range(count):
        files, answer = draw_digits(cells, rng)
        frames = []
        for file, times in zip(files, pace(rng), strict=True):
            frames += [np.asarray(Image.open(out / file))] * times
        video = f"videos/{split}/{n}.mp4"
        encode_clip(frames, out / video)
        records.append(record(f"video-{split}-{n}", {"video": video}, (f"<video>\n{LIST_QUESTION}", answer)))
        if sys.stdout.isatty() and n % 100 == 99:
            print(f"\rdemo data: {n + 1} of {count} clips ({split})", end="\n" if n + 1 == count else "", flush=True)
    return records


def make(out: Path, seed: int) -> None:
    shapes = Path(easy_vqa.__file__).parent / "data"

    def rng(name: str) -> random.Random:
        return random.Random(f"{seed} {name}")

    say("shapes with questions (easy-vqa)")
    (out / "LICENSE.easy-vqa").write_text(distribution("easy-vqa").read_text("LICENSE") or "")
    files = shape_records(shapes, out, rng("train shapes"))
    shutil.copytree(shapes / "test" / "images", out / "shapes" / "test")
    held_out = {"shapes": held_out_shapes(shapes, rng("held-out shapes"))}
    say("handwritten digits (OpenCV)")
    cells = cut_digits(out)
    train, test = cells["train"], cells["test"]
    files["digit_captions"] = digit_captions(train)
    files["digit_lists"] = digit_lists("train", train, NUM_LISTS, rng("train lists"))
    held_out["multi_image"] = digit_lists("test", test, NUM_HELD_OUT, rng("held-out lists"))
    say(f"{NUM_VIDEOS + NUM_HELD_OUT} clips")
    files["digit_videos"] = digit_videos("train", train, NUM_VIDEOS, rng("train videos"), out, training_pace)
    held_out["video"] = digit_videos("test", test, NUM_HELD_OUT, rng("held-out videos"), out, lambda _: HELD_OUT_PACE)
    files["text"] = text_records(files, rng("text"))
    for name, records in files.items():
        write_json(out / f"{name}.json", records)
    for name, records in held_out.items():
        write_json(out / "heldout" / f"{name}.json", records)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's data.")
    parser.add_argument("--out", type=Path, help="folder to make, default data/cache/demo/seedN")
    parser.add_argument("--seed", type=int, default=0, help="draws the lists, the clips and the held-out questions")
    args = parser.parse_args()
    out = args.out or default_folder(args.seed)
    made_by = fingerprint(Path(__file__), seed=args.seed)
    if is_made(out, made_by):
        say(f"{out} is there already")
        return
    with whole_or_absent(out) as scratch:
        make(scratch, args.seed)
        (scratch / "made_by.json").write_text(made_by)
    say(f"written to {out}")


if __name__ == "__main__":
    main()
