"""Makes what the speed of a training step is measured on: a model of 7M random weights, and samples for it.

    python benchmarks/make_bench.py [FOLDER]

model/: SigLIP of 4 layers of 144 at 112 pixels and patches of 14, Qwen2 of 4 layers of 256 and a tied vocabulary of
8192 rows, of which a tokenizer of bytes uses the first. records.json, images/: text alone and single images of 1 to 9
tiles beside the overview, of random words and blobs; 441 tokens a sample in the median, 18 % of them supervised. The
same for the same seed; a folder that is there is left alone.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import LlavaOnevisionConfig, PreTrainedTokenizerBase

from llava_train.config.schema import VideoConfig
from llava_train.family.onevision.tokens import add_tags
from llava_train.model.card import Card
from llava_train.model.hf import Preparation, checkpoint_geometry, write_checkpoint
from llava_train.model.tiny import byte_tokenizer, tiny_config, tiny_model

FOLDER = Path(__file__).parent / "cache"
TILE = 112
SAMPLES = 320
TEXT_SHARE = 0.2
WORDS = ("a", "of", "the", "small", "large", "red", "green", "blue", "round", "left", "above", "one", "two", "line")


def bench_config(tokenizer: PreTrainedTokenizerBase) -> LlavaOnevisionConfig:
    vision = {"hidden_size": 144, "intermediate_size": 576, "num_hidden_layers": 4}
    text = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    return tiny_config(tokenizer, tile_size=TILE, patch_size=14, vision=vision, text=text)


def make_model(folder: Path, seed: int = 0) -> None:
    tokenizer = byte_tokenizer()
    add_tags(tokenizer)
    config = bench_config(tokenizer)
    preparation = Preparation(checkpoint_geometry(config), "qwen", "front", VideoConfig(fps=1.0, max_frames=4))
    card = Card(recipe="bench", stage="none", init="random weights", data={}, settings={"seed": str(seed)}, figures={})
    write_checkpoint(folder, tiny_model(config, seed).state_dict().items(), config, tokenizer, preparation, card)


def words(draw: random.Random, length: int) -> str:
    """About so many bytes, which are as many tokens."""
    text = ""
    while len(text) < length:
        text += f"{draw.choice(WORDS)} "
    return text.strip()


def picture(draw: np.random.Generator, height: int, width: int) -> Image.Image:
    blobs = draw.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)


def make_samples(folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Draws the records and writes their images."""
    draw, pixels = random.Random(seed), np.random.default_rng(seed)
    (folder / "images").mkdir()
    records = []
    for number in range(SAMPLES):
        record: dict[str, Any] = {"id": f"{number:04d}"}
        question, answer = words(draw, draw.randint(8, 32)), words(draw, draw.randint(24, 116))
        if draw.random() < TEXT_SHARE:
            question, answer = words(draw, draw.randint(100, 400)), words(draw, draw.randint(60, 240))
        else:
            rows, columns = draw.randint(1, 3), draw.randint(1, 3)
            height, width = (TILE * n - draw.randint(0, 12) for n in (rows, columns))
            record["image"] = f"images/{number:04d}.png"
            picture(pixels, height, width).save(folder / record["image"])
            question = f"<image>\n{question}"
        record["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append(record)
    return records


def main(folder: Path) -> Path:
    if not (folder / "records.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_model(folder / "model")
        records = make_samples(folder)
        (folder / "records.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return folder


if __name__ == "__main__":
    print(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
