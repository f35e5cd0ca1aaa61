"""Makes what the speed of a training step is measured on: a model of random weights, and samples for it.

    python benchmarks/make_bench.py [FOLDER] [--size small|0_5b|7b|7b_4_layers] [--mix] [--samples N]

model/: `small` is SigLIP of 4 layers of 144 at 112 pixels and patches of 14, Qwen2 of 4 layers of 256 and a tied
vocabulary of 8192 rows; the others have the dimensions of the released checkpoints, in bf16, `7b_4_layers` with so
many layers of its language model alone, so that full tuning fits one GPU. A tokenizer of bytes uses the first rows.
records.json, media/: text alone and single images of 1 to 9 tiles beside the overview, of random words and blobs, some
441 tokens a sample in the median with `small`, 18 % of them supervised; with --mix all kinds of samples of
LLaVA-OneVision's last stage, several images and videos among them, as `llava_train/plan/simulation.py` draws them.
The same for the same seed and device; a folder that is there is left alone.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from transformers import LlavaOnevisionConfig

from llava_train.config.schema import VideoConfig
from llava_train.costs.dims import KNOWN_DIMS, ModelDims
from llava_train.model.files.tensor_files import Spec
from llava_train.model.hf_folder.card import Card
from llava_train.model.hf_folder.folder import write_checkpoint
from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
from llava_train.model.hf_folder.weights import expected_specs
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config
from llava_train.plan.simulation import LEAST_SIDE, SAMPLE_SHAPES, SampleShape
from llava_train.text.placeholders import add_tags

FOLDER = Path(__file__).parent / "cache"
SAMPLES = 320
TEXT_SHARE = 0.2
FPS = 4  # of the videos
WORDS = ("a", "of", "the", "small", "large", "red", "green", "blue", "round", "left", "above", "one", "two", "line")
SMALL: dict[str, Any] = {
    "tile_size": 112,
    "patch_size": 14,
    "vision": {"hidden_size": 144, "intermediate_size": 576, "num_hidden_layers": 4},
    "text": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4},
}
QWEN_7B = KNOWN_DIMS["Qwen/Qwen2-7B-Instruct"]
SIZES = {
    "small": None,
    "0_5b": KNOWN_DIMS["Qwen/Qwen2-0.5B-Instruct"],
    "7b": QWEN_7B,
    "7b_4_layers": replace(QWEN_7B, layers=4),
}


def released(dims: ModelDims) -> dict[str, Any]:
    """Arguments of `tiny_config` for a model of these dimensions, with 16 heads in its tower as SO400M has."""
    return {
        "tied": dims.tied,
        "tile_size": dims.tile_size,
        "patch_size": dims.patch_size,
        "vision": {
            "hidden_size": dims.tower_hidden,
            "intermediate_size": dims.tower_intermediate,
            "num_hidden_layers": dims.tower_layers,
            "num_attention_heads": 16,
        },
        "text": {
            "vocab_size": dims.vocab,
            "hidden_size": dims.hidden,
            "intermediate_size": dims.intermediate,
            "num_hidden_layers": dims.layers,
            "num_attention_heads": dims.heads,
            "num_key_value_heads": dims.kv_heads,
        },
    }


def random_weights(specs: Mapping[str, Spec], seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Of a model's parameters, one at a time: outputs as large as inputs, norms that pass what they get."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # billions of numbers
    generator = torch.Generator(device).manual_seed(seed)
    for name, spec in specs.items():
        if len(spec.shape) > 1 or name == "model.image_newline":
            std = torch.Size(spec.shape[1:]).numel() ** -0.5
            drawn = torch.randn(spec.shape, generator=generator, device=device) * std
            yield name, drawn.to("cpu", spec.dtype)
        else:
            yield name, (torch.zeros if name.endswith(".bias") else torch.ones)(spec.shape, dtype=spec.dtype)


def make_model(folder: Path, size: str, seed: int = 0) -> LlavaOnevisionConfig:
    tokenizer = byte_tokenizer()
    add_tags(tokenizer)
    dims = SIZES[size]
    config = tiny_config(tokenizer, **(released(dims) if dims else SMALL))
    preparation = Preparation(checkpoint_geometry(config), "qwen", "front", VideoConfig(fps=1.0, max_frames=32))
    card = Card(recipe="bench", stage="none", init="random weights", data={}, settings={"seed": str(seed)}, figures={})
    specs = expected_specs(config, torch.bfloat16 if dims else torch.float32)
    write_checkpoint(folder, random_weights(specs, seed), config, tokenizer, preparation, card)
    return config


def words(draw: random.Random, length: int) -> str:
    """About so many bytes, which are as many tokens."""
    text = ""
    while len(text) < length:
        text += f"{draw.choice(WORDS)} "
    return text.strip()


def picture(draw: np.random.Generator, height: int, width: int) -> Image.Image:
    blobs = draw.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)


def clip(draw: np.random.Generator, seconds: float, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(max(1, round(seconds * FPS))):
            frame = av.VideoFrame.from_image(picture(draw, 240, 320))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def plain_samples(
    folder: Path, num: int, tile: int, draw: random.Random, pixels: np.random.Generator
) -> list[dict[str, Any]]:
    """Text alone, and single images."""
    records = []
    for number in range(num):
        record: dict[str, Any] = {"id": f"{number:04d}"}
        question, answer = words(draw, draw.randint(8, 32)), words(draw, draw.randint(24, 116))
        if draw.random() < TEXT_SHARE:
            question, answer = words(draw, draw.randint(100, 400)), words(draw, draw.randint(60, 240))
        else:
            rows, columns = draw.randint(1, 3), draw.randint(1, 3)
            height, width = (tile * n - draw.randint(0, 12) for n in (rows, columns))
            record["image"] = f"media/{number:04d}.png"
            picture(pixels, height, width).save(folder / record["image"])
            question = f"<image>\n{question}"
        record["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append(record)
    return records


def mixed_samples(
    folder: Path, num: int, scale: float, draw: random.Random, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """By the shares of the last stage's mixture. scale: of images, for tiles that are smaller than the released."""
    kinds = list(SAMPLE_SHAPES.values())
    drawn = draw.choices(kinds, [kind.samples for kind in kinds], k=num)
    return [_mixed(folder, f"{number:04d}", kind, scale, draw, rng) for number, kind in enumerate(drawn)]


def _mixed(
    folder: Path, name: str, kind: SampleShape, scale: float, draw: random.Random, rng: np.random.Generator
) -> dict[str, Any]:
    turns, tags = int(rng.geometric(1 / kind.turns)), ""
    images: list[Image.Image] = []
    record: dict[str, Any] = {"id": name}
    if kind.side and kind.aspect:
        side, aspect = kind.side.draw(rng, 1)[0] * scale, kind.aspect.draw(rng, 1)[0]
        sides = (side, side * aspect) if aspect < 1 else (side / aspect, side)
        images = [picture(rng, *(max(LEAST_SIDE, round(value)) for value in sides))]
    elif kind.images:
        images = [picture(rng, 240, 320) for _ in range(1 + int(rng.geometric(1 / (kind.images - 1))))]
    elif kind.seconds:
        record["video"], tags = f"media/{name}.mp4", "<video>\n"
        clip(rng, kind.seconds.draw(rng, 1)[0], folder / record["video"])
    if images:
        record["image"], tags = [f"media/{name}-{i}.jpg" for i in range(len(images))], "<image>\n" * len(images)
        for path, image in zip(record["image"], images, strict=True):
            image.save(folder / path)
    record["conversations"] = []
    for turn in range(turns):
        question, answer = (words(draw, max(1, round(of.draw(rng, 1)[0]))) for of in (kind.question, kind.answer))
        turns_text = [{"from": "human", "value": ("" if turn else tags) + question}, {"from": "gpt", "value": answer}]
        record["conversations"] += turns_text
    return record


def main(folder: Path = FOLDER, size: str = "small", mix: bool = False, samples: int = SAMPLES) -> Path:
    if not (folder / "records.json").exists():
        (folder / "media").mkdir(parents=True, exist_ok=True)
        tile = make_model(folder / "model", size).vision_config.image_size
        draws = random.Random(0), np.random.default_rng(0)
        records = (
            mixed_samples(folder, samples, tile / 384, *draws) if mix else plain_samples(folder, samples, tile, *draws)
        )
        (folder / "records.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    print(main(**vars(parser.parse_args())))
