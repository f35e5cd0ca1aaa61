"""Stage 0 of the demo: make the two parts that every later stage starts from, a vision tower and a language model.

    python data/scripts/make_demo_parts.py --seed 0

A real run starts from SigLIP and Qwen2. Their weights cannot be shipped here, so small models of the same classes stand
in for them, trained from nothing on the training part of the demo's data alone:

    parts/vision_tower    a SiglipVisionModel that names the colour, shape or digit of a picture at each of its patches
    parts/language_model  a Qwen2ForCausalLM, with its tokenizer, that answers questions about pictures told in words

The two are made side by side, and neither sees the other: tying picture to word is left to the stages. Each folder
appears whole or not at all, and is left alone if it is there and was made by this very script from the data as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_demo import COLORS, SHAPES, default_folder, fingerprint, is_made, whole_or_absent
from PIL import Image
from tokenizers import pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, SiglipVisionConfig, SiglipVisionModel

from llava_train.batch.packed import PackedBatch
from llava_train.config.schema import ImageConfig
from llava_train.data.loading.collate import collate
from llava_train.data.samples.encode import EncodedSample, Encoder, text_tokenizer
from llava_train.data.samples.parse import MediaRoots, to_sample
from llava_train.family.onevision.family import OneVision
from llava_train.model.forward.attention import PACKED, Documents, register
from llava_train.model.forward.loss import make_loss
from llava_train.text.named_templates import make_template
from llava_train.text.placeholders import add_tags

PARTS = ("vision_tower", "language_model")
TILE, PATCH = 32, 8
TOWER: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
TOWER_STEPS, TOWER_BATCH, TOWER_DIGITS, TOWER_RATE = 2600, 32, 20, 2e-3  # digits: so many of a batch, the rest shapes
LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,  # about 1/sqrt(hidden): with Qwen2's 0.02 attention stays flat for a thousand steps
}
TEXT_STEPS, TEXT_BATCH, TEXT_RATE = 300, 32, 2e-3
VOCABULARY = 512
CAPTION_SHARE = 5  # one document in five is a caption after the words it tells, as in the projector stage

Step = Callable[[], torch.Tensor]


def say(text: str) -> None:
    print(f"stage 0: {text}", flush=True)


def read_json(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def caption_of(record: dict) -> str:
    return record["conversations"][1]["value"]


def told_words(caption: str) -> list[str]:
    """The words that carry it: teal and rectangle of "a teal rectangle.", 7 of "a handwritten 7."."""
    return caption.strip(".").removeprefix("a ").removeprefix("handwritten ").split()


def caption_words(data: Path) -> dict[str, list[str]]:
    """Training picture -> the words that tell it."""
    records = read_json(data / "shape_captions.json") + read_json(data / "digit_captions.json")
    return {r["image"]: told_words(caption_of(r)) for r in records}


def optimise(name: str, module: nn.Module, steps: int, rate: float, weight_decay: float, loss_of_step: Step) -> None:
    """AdamW with 5 % warm-up and cosine decay to zero."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    warmup, started = math.ceil(0.05 * steps), time.monotonic()
    parent = multiprocessing.parent_process()
    for step in range(steps):
        if parent and not parent.is_alive():
            raise SystemExit("stage 0 was ended")
        factor = min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate * factor
        loss = loss_of_step()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % (steps // 10) == 0:
            say(f"{name}, step {step + 1} of {steps}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s")


# --- vision tower


def read_tiles(data: Path, pictures: list[str]) -> torch.Tensor:
    """float [N, 3, 32, 32] in [-1, 1]: the pictures as the model's overview tile shows them."""
    tiles = [Image.open(data / p).convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2) / 127.5 - 1


def moved(tiles: torch.Tensor, max_turn: float) -> torch.Tensor:
    """Each tile shifted, stretched and, up to `max_turn` radians, turned and slanted at random."""
    count = len(tiles)

    def uniform(limit: float, *shape: int) -> torch.Tensor:
        return (torch.rand(count, *shape) * 2 - 1) * limit

    turn, stretch, shift = uniform(max_turn), 1 + uniform(0.1, 2), uniform(0.16, 2)
    across = torch.stack([turn.cos() * stretch[:, 0], -turn.sin() * stretch[:, 1] + uniform(max_turn), shift[:, 0]], -1)
    down = torch.stack([turn.sin() * stretch[:, 0], turn.cos() * stretch[:, 1], shift[:, 1]], -1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, padding_mode="border", align_corners=False)


def train_tower(data: Path, out: Path) -> None:
    """Heads for colour, shape and digit, thrown away at the end, read every patch of the tower's last hidden state."""
    words = caption_words(data)
    digits, shapes = ([p for p in words if p.startswith(kind)] for kind in ("digits/", "shapes/"))
    digit_tiles, shape_tiles = read_tiles(data, digits), read_tiles(data, shapes)
    digit = torch.tensor([int(words[p][0]) for p in digits])
    color = torch.tensor([COLORS.index(words[p][0]) for p in shapes])
    shape = torch.tensor([SHAPES.index(words[p][1]) for p in shapes])
    tower = SiglipVisionModel(SiglipVisionConfig(image_size=TILE, patch_size=PATCH, vision_use_head=False, **TOWER))
    sizes = (10, len(COLORS), len(SHAPES))
    heads = nn.Sequential(nn.LayerNorm(TOWER["hidden_size"]), nn.Linear(TOWER["hidden_size"], sum(sizes)))

    def mistakes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))

    def loss_of_step() -> torch.Tensor:
        i = torch.randint(len(digits), (TOWER_DIGITS,))
        j = torch.randint(len(shapes), (TOWER_BATCH - TOWER_DIGITS,))
        tiles = torch.cat([moved(digit_tiles[i], 0.16), moved(shape_tiles[j], 0.0)])
        hidden = tower(pixel_values=tiles, output_hidden_states=True).hidden_states[-1]
        to_digit, to_color, to_shape = heads(hidden).split(sizes, dim=-1)
        of_shapes = 0.5 * mistakes(to_color[len(i) :], color[j]) + mistakes(to_shape[len(i) :], shape[j])
        return mistakes(to_digit[: len(i)], digit[i]) + of_shapes

    optimise("vision tower", nn.ModuleList([tower, heads]), TOWER_STEPS, TOWER_RATE, 0.05, loss_of_step)
    tower.save_pretrained(out)


# --- language model


def make_tokenizer(data: Path) -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE and special tokens, with merges learnt from the training records and the chat frame."""
    frame = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 500
    names = ("text", "shape_captions", "shape_details", "shape_questions", "digit_lists")
    told = [turn["value"] for n in names for r in read_json(data / f"{n}.json")[:1500] for turn in r["conversations"]]
    backend = Qwen2Tokenizer().backend_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(frame + [text.replace("<image>", "") for text in told], trainer)
    learnt = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],  # type: ignore[misc]
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    add_tags(tokenizer)
    return tokenizer


def told_captions(data: Path, tokenizer: Qwen2Tokenizer, count: int, rng: random.Random) -> Iterator[EncodedSample]:
    """A picture's words repeated, then, supervised, its caption and a newline."""
    encode = text_tokenizer(tokenizer).encode
    captions = [caption_of(r) for n in ("shape_captions", "digit_captions") for r in read_json(data / f"{n}.json")]
    for n in range(count):
        caption = rng.choice(captions)
        shown = told_words(caption) * rng.choice((2, 4, 8))
        before = encode(" ".join(rng.sample(shown, len(shown))) + rng.choice(("", "\n")), add_special_tokens=False).ids
        after = encode(f"{caption}\n", add_special_tokens=False).ids
        ids, labels = np.array(before + after, np.int32), np.array([-100] * len(before) + after, np.int32)
        yield EncodedSample(str(n), "captions", str(n), ids, labels, np.zeros(0, np.int32), ())


def text_documents(data: Path, tokenizer: Qwen2Tokenizer, rng: random.Random) -> list[EncodedSample]:
    """What the language model reads: `text.json` in the chat template of the later stages, and told captions."""
    tags = tokenizer.get_added_vocab()
    template = make_template("qwen", "clean", "front")
    encoder = Encoder(tokenizer, tags["<image>"], tags["<video>"], template, max_length=1024)
    records = enumerate(read_json(data / "text.json"))
    documents = [encoder.encode(to_sample(record, "text", n, MediaRoots(data)), ()) for n, record in records]
    return documents + list(told_captions(data, tokenizer, len(documents) // (CAPTION_SHARE - 1), rng))


def train_language_model(data: Path, out: Path, rng: random.Random) -> None:
    tokenizer = make_tokenizer(data)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **LANGUAGE_MODEL,
    )
    model = Qwen2ForCausalLM(config)
    register()
    model.set_attn_implementation(PACKED)
    geometry = OneVision().geometry(TILE, PATCH, ImageConfig("square", [], 1))
    documents = text_documents(data, tokenizer, rng)
    nothing = np.zeros((0, 3, TILE, TILE), np.uint8)

    def packs() -> Iterator[PackedBatch]:
        while True:
            order = rng.sample(documents, len(documents))
            for start in range(0, len(order) - TEXT_BATCH + 1, TEXT_BATCH):
                batch = sorted(order[start : start + TEXT_BATCH], key=lambda document: len(document.input_ids))
                yield collate(batch, [nothing] * len(batch), geometry.tile_size)

    batches, loss = packs(), make_loss(model.lm_head)

    def loss_of_step() -> torch.Tensor:
        pack = next(batches)
        hidden = model.model(
            input_ids=pack.input_ids[None],
            position_ids=pack.position_ids[None],
            use_cache=False,
            documents=Documents(pack.cu_seqlens, pack.max_seqlen, "sdpa"),
        ).last_hidden_state[0]
        return loss(hidden[pack.supervised - 1], pack.labels[pack.supervised]) / pack.num_supervised

    optimise("language model", model, TEXT_STEPS, TEXT_RATE, 0.0, loss_of_step)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_part(name: str, data: Path, made_by: str, seed: int) -> None:
    """One of the two parts, on one thread: its matrices are too small to share."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    folder = data / "parts" / name
    with whole_or_absent(folder) as scratch:
        if name == "vision_tower":
            train_tower(data, scratch)
        else:
            train_language_model(data, scratch, random.Random(seed))
        (scratch / "made_by.json").write_text(made_by)
    say(f"written to {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's vision tower and language model (stage 0).")
    parser.add_argument("--data", type=Path, help="folder of make_demo.py, default data/cache/demo/seedN")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = args.data or default_folder(args.seed)
    made_by = fingerprint(Path(__file__), seed=args.seed, data=(data / "made_by.json").read_text())
    missing = [name for name in PARTS if not is_made(data / "parts" / name, made_by)]
    if not missing:
        say(f"{data / 'parts'} is there already")
        return
    say("the weights of SigLIP and Qwen2 are not shipped: two small stand-ins are trained from nothing")
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=make_part, args=(name, data, made_by, args.seed)) for name in missing]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise SystemExit("stage 0: failed, see above")


if __name__ == "__main__":
    main()
