"""Samples of every kind, prepared by us and by transformers, for the parity tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from llava_train.batch.packed import PackedBatch
from llava_train.data.loading.collate import collate
from llava_train.data.samples.encode import EncodedSample, Encoder
from llava_train.data.samples.sample import Sample, Turn
from llava_train.family.base import MediumShape, VisualLayout
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.family.pixels import squash
from llava_train.text.named_templates import make_template


def tiles_of(image: Image.Image, layout: VisualLayout, geometry: OneVisionGeometry) -> np.ndarray:
    """uint8 [layout.num_tiles, 3, S, S] of an image of the layout's size."""
    tiles = np.empty((layout.num_tiles, 3, geometry.tile_size, geometry.tile_size), np.uint8)
    geometry.cut(image, layout, tiles)
    return tiles


@dataclass(frozen=True)
class Case:
    """images: sizes (height, width); frames: number of frames of each video, 40 x 30; text: with tags."""

    name: str
    images: tuple[tuple[int, int], ...]
    frames: tuple[int, ...]
    text: str
    answer: str = "A cat."

    def pictures(self) -> list[Image.Image]:
        return [noise(height, width, seed) for seed, (height, width) in enumerate(self.images)]

    def videos(self) -> list[list[Image.Image]]:
        """Smooth frames: on noise PIL and torchvision differ by 15/255, since PIL clamps between its two passes."""
        frames = [[noise(8, 6, 100 * v + f) for f in range(count)] for v, count in enumerate(self.frames)]
        return [[frame.resize((30, 40), Image.Resampling.BICUBIC) for frame in film] for film in frames]


def noise(height: int, width: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


TEXT = Case("text", (), (), "Hello there, what is 2 + 2?", "4")
SINGLE = Case("single", ((50, 90),), (), "<image>\nWhat is shown?")
SEVERAL = Case("several", ((30, 70), (64, 20), (50, 50)), (), "one: <image>\ntwo: <image>\n<image>\nCompare.", "Alike.")
VIDEO = Case("video", (), (3,), "<video>\nWhat happens?", "Nothing at all.")
MIXED = Case("mixed", ((33, 44), (70, 21)), (2, 4), "<video>\nthen <image>\n<image>\n<video>\nDescribe.", "Many.")
KINDS = (TEXT, SINGLE, SEVERAL, VIDEO, MIXED)


@dataclass
class Ours:
    """Our preparation and forward of cases."""

    tokenizer: object
    geometry: OneVisionGeometry
    image_id: int
    video_id: int

    def encode(self, case: Case, prompt: bool = False) -> tuple[EncodedSample, np.ndarray]:
        encoder = Encoder(self.tokenizer, self.image_id, self.video_id, make_template("qwen", "clean", "front"), 10**6)
        turns = (Turn("human", case.text), Turn("gpt", case.answer))
        pictures, videos = case.pictures(), case.videos()
        paths = [[Path(f"{i}") for i in range(len(media))] for media in (pictures, videos)]
        sample = Sample(case.name, "cases", turns, *paths)
        images = iter(
            zip(self.geometry.layouts([MediumShape("image", *size) for size in case.images]), pictures, strict=True)
        )
        films = iter([(self.geometry.video(len(film), 40, 30), film) for film in videos])
        layouts, tiles = [], [np.zeros((0, 3, self.geometry.tile_size, self.geometry.tile_size), np.uint8)]
        for medium in sample.media():
            layout, pixels = next(images if medium.kind == "image" else films)
            layouts.append(layout)
            if medium.kind == "image":
                tiles.append(tiles_of(pixels, layout, self.geometry))
            else:
                tiles.append(np.stack([squash(frame, self.geometry.tile_size) for frame in pixels]))
        encode = encoder.encode_prompt if prompt else encoder.encode
        return encode(sample, layouts), np.concatenate(tiles)

    def pack(self, cases: tuple[Case, ...], prompt: bool = False) -> PackedBatch:
        encoded, tiles = zip(*(self.encode(case, prompt) for case in cases), strict=True)
        return collate(list(encoded), list(tiles), self.geometry.tile_size)


@dataclass
class Theirs:
    """The same by transformers: PIL image processor, processor's token counts, model."""

    model: LlavaOnevisionForConditionalGeneration
    tokenizer: object

    def image_processor(self) -> LlavaOnevisionImageProcessorPil:
        config = self.model.config
        size = config.vision_config.image_size
        return LlavaOnevisionImageProcessorPil(
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            size={"height": size, "width": size},
            image_grid_pinpoints=config.image_grid_pinpoints,
        )

    def pixels(self, case: Case) -> torch.Tensor:
        """[tiles, 3, S, S] of the images, without the padding of the tile dimension."""
        out = self.image_processor()(images=[case.pictures()], return_tensors="pt", do_pad=True)
        tiles = out["pixel_values"]
        return tiles.flatten(0, 1) if len(case.images) > 1 else tiles[0]

    def frames(self, case: Case) -> list[torch.Tensor]:
        """Normalised frames [1, F, 3, S, S] of each video, resized by PIL."""
        size = self.model.config.vision_config.image_size
        films = [np.stack([squash(frame, size) for frame in film]) for film in case.videos()]
        return [torch.from_numpy(film)[None].float() / 127.5 - 1 for film in films]

    def num_tokens(self, case: Case) -> tuple[list[int], list[int]]:
        """Tokens of each image and of each video by the rules of `LlavaOnevisionProcessor`."""
        config, processor = self.model.config, self.image_processor()
        size = config.vision_config.image_size
        side = size // config.vision_config.patch_size
        stand_in = SimpleNamespace(
            num_image_tokens=side**2, vision_aspect_ratio=config.vision_aspect_ratio, image_processor=processor
        )
        stand_in._get_unpadded_features = LlavaOnevisionProcessor._get_unpadded_features.__get__(stand_in)
        count = LlavaOnevisionProcessor._get_number_of_features
        if len(case.images) == 1:
            images = [count(stand_in, *case.images[0], size, size)]
        else:
            images = [side**2 + 1] * len(case.images)
        replace = LlavaOnevisionProcessor.replace_video_token
        stand_in.video_token = "v"
        videos = {"pixel_values_videos": [film[0] for film in self.frames(case)]}
        return images, [len(replace(stand_in, videos, i)) for i in range(len(case.frames))]

    def input_ids(self, case: Case, template: str, prompt: bool = False) -> list[int]:
        """The rendered conversation with expanded placeholders, tokenised at once. prompt: open for the answer."""
        messages = [{"role": "user", "content": case.text}, {"role": "assistant", "content": case.answer}]
        text = self.tokenizer.apply_chat_template(
            messages[: 1 if prompt else 2], chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        images, videos = self.num_tokens(case)
        for tag, counts in (("<image>", images), ("<video>", videos)):
            parts = text.split(tag)
            expanded = [part + mark for part, mark in zip(parts, [*(tag * n for n in counts), ""], strict=True)]
            text = "".join(expanded).replace(tag, f"\0{tag[1]}") if tag == "<image>" else "".join(expanded)
        return self.tokenizer(text.replace("\0i", "<image>"), add_special_tokens=False)["input_ids"]

    def media(self, cases: tuple[Case, ...]) -> dict:
        """Keyword arguments of the model's forward. Videos of one call must have equally many frames."""
        with_images = [case for case in cases if case.images]
        films = [film for case in cases for film in self.frames(case)]
        media = {}
        if with_images:
            media["pixel_values"] = torch.cat([self.pixels(case) for case in with_images])
            media["image_sizes"] = torch.tensor([size for case in with_images for size in case.images])
            media["batch_num_images"] = torch.tensor([len(case.images) for case in with_images])
        if films:
            media["pixel_values_videos"] = torch.cat(films)
        return media
