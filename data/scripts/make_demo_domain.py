"""Make the data of the second demo: round dials with one needle, a domain that the first demo does not know.

    python data/scripts/make_demo_domain.py --seed 0

Enters: the folder that make_demo.py leaves. Leaves in its folder `dials`:

    {train,test}/N.png   64x64, a dial with a scale of ten marks and a needle of one color
    train.json           training records: what the dial reads, a digit, and which color the needle has
    shuffled.json        the same pictures and questions with the answers dealt out at random: the control
    heldout.json         one question a record, about pictures whose face and needle are of a pair not in training

The folder appears whole or not at all, and is left alone if it is there and was made by this very script and seed.
"""

from __future__ import annotations

import argparse
import math
import random
from itertools import product
from pathlib import Path
from typing import NamedTuple

from make_demo import Record, default_folder, fingerprint, is_made, record, whole_or_absent, write_json
from PIL import Image, ImageDraw

NUM_TRAIN = 3000
NUM_HELD_OUT = 500
SIZE, SCALE = 64, 4  # pixels a side; drawn so many times larger
READING_QUESTION = "what does the dial read?"
COLOR_QUESTION = "what color is the needle?"
NEEDLES = {
    "black": (20, 20, 20),
    "blue": (30, 60, 200),
    "brown": (120, 70, 30),
    "green": (30, 140, 50),
    "red": (200, 30, 30),
    "teal": (20, 140, 140),
}
FACES = ((255, 255, 255), (250, 240, 200), (215, 230, 250), (225, 245, 220), (250, 220, 225))
PAIRS = list(product(NEEDLES, range(len(FACES))))


class Dial(NamedTuple):
    reading: int  # 0 to 9
    color: str  # of the needle


def held_out_pairs() -> list[tuple[str, int]]:
    """Needle and face of the held-out pictures: each needle's color and each face is in training, not together."""
    return [(color, (2 * i) % len(FACES)) for i, color in enumerate(NEEDLES)]


def draw_dial(pair: tuple[str, int], path: Path, rng: random.Random) -> Dial:
    """A dial at a random place, size and reading: 0 points to the lower left, each step is 30 degrees clockwise."""
    color, face = pair
    reading = rng.randrange(10)
    picture = Image.new("RGB", (SIZE * SCALE,) * 2, tuple(rng.randint(170, 235) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    middle = [(SIZE / 2 + rng.uniform(-3, 3)) * SCALE for _ in range(2)]
    radius = rng.uniform(23, 28) * SCALE

    def point(degrees: float, share: float) -> tuple[float, float]:
        turn = math.radians(degrees)
        return middle[0] + share * radius * math.cos(turn), middle[1] + share * radius * math.sin(turn)

    pen.circle(middle, radius, FACES[face], (60, 60, 60), 2 * SCALE)
    for mark in range(10):
        pen.line([point(135 + 30 * mark, 0.78), point(135 + 30 * mark, 0.92)], (60, 60, 60), SCALE)
    aim = 135 + 30 * reading + rng.uniform(-8, 8)
    tip, left, right = point(aim, rng.uniform(0.68, 0.8)), point(aim + 90, 0.12), point(aim - 90, 0.12)
    pen.polygon([tip, left, point(aim + 180, 0.15), right], NEEDLES[color])
    picture.resize((SIZE, SIZE), Image.Resampling.BOX).save(path, compress_level=1)
    return Dial(reading, color)


def draw_dials(split: str, pairs: list[tuple[str, int]], count: int, out: Path, rng: random.Random) -> list[Dial]:
    (out / split).mkdir()
    return [draw_dial(rng.choice(pairs), out / split / f"{n}.png", rng) for n in range(count)]


def ask(split: str, n: int, *turns: tuple[str, str]) -> Record:
    (question, answer), *rest = turns
    return record(f"dial-{split}-{n}", {"image": f"dials/{split}/{n}.png"}, (f"<image>\n{question}", answer), *rest)


def turns_of(dial: Dial) -> list[tuple[str, str]]:
    return [(READING_QUESTION, str(dial.reading)), (COLOR_QUESTION, dial.color)]


def make(out: Path, seed: int) -> None:
    rng = random.Random(f"{seed} dials")
    kept = held_out_pairs()
    train = draw_dials("train", [pair for pair in PAIRS if pair not in kept], NUM_TRAIN, out, rng)
    dealt = rng.sample(train, len(train))
    for name, dials in (("train", train), ("shuffled", dealt)):
        asked = [rng.sample(turns_of(dial), 2) for dial in dials]
        write_json(out / f"{name}.json", [ask("train", n, *turns) for n, turns in enumerate(asked)])
    test = draw_dials("test", kept, NUM_HELD_OUT, out, rng)
    write_json(out / "heldout.json", [ask("test", n, turns_of(dial)[0]) for n, dial in enumerate(test)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the data of the second demo.")
    parser.add_argument("--data", type=Path, help="folder that make_demo.py has made, default data/cache/demo/seedN")
    parser.add_argument("--seed", type=int, default=0, help="draws the dials")
    args = parser.parse_args()
    out = (args.data or default_folder(args.seed)) / "dials"
    made_by = fingerprint(Path(__file__), seed=args.seed)
    if is_made(out, made_by):
        print(f"dials: {out} is there already", flush=True)
        return
    with whole_or_absent(out) as scratch:
        make(scratch, args.seed)
        (scratch / "made_by.json").write_text(made_by)
    print(f"dials: written to {out}", flush=True)


if __name__ == "__main__":
    main()
