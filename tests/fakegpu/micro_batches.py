"""Models and packs for the fake GPU, and what the engine does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import numpy as np
import torch
from fake_gpu import FakeGpu
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.initialization import no_init_weights

from llava_train.batch.packed import IGNORE_INDEX, PackedBatch
from llava_train.config.schema import LearningRates, LoraConfig
from llava_train.costs.flops import Recomputed
from llava_train.data.loading.collate import collate
from llava_train.data.samples.encode import EncodedSample
from llava_train.family.base import VisualLayout
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.prepare.adapter import inject
from llava_train.model.prepare.trained_parts import set_trainable
from llava_train.train.engine.engine import place_buffers
from llava_train.train.recomputing import set_layers

PLACEHOLDER = 259


def sample(layouts: Sequence[VisualLayout], question: int = 3, answer: int = 3) -> EncodedSample:
    """Two tokens, the visuals, and the rest of a question and an answer of as many tokens as said."""
    visual = [PLACEHOLDER] * sum(layout.num_tokens for layout in layouts)
    ids = np.array([65, 66, *visual, *[67] * (question - 2), *[68] * answer], dtype=np.int32)
    labels = np.where(np.arange(len(ids)) < len(ids) - answer, IGNORE_INDEX, ids).astype(np.int32)
    places = np.flatnonzero(ids == PLACEHOLDER).astype(np.int32)
    return EncodedSample("sample", "source", "sample", ids, labels, places, tuple(layouts))


def pack(samples: Sequence[EncodedSample], geometry: OneVisionGeometry) -> PackedBatch:
    """On the host, with black pixels."""
    side = geometry.tile_size
    return collate(samples, [np.zeros((one.num_tiles, 3, side, side), np.uint8) for one in samples], side)


def make(
    gpu: FakeGpu,
    config: LlavaOnevisionConfig,
    rates: LearningRates,
    lora: Mapping[str, LoraConfig],
    recomputed: Recomputed,
    buffers: bool = True,
) -> PackedForward:
    """A model in bf16, placed as the engine places it; without adapters none of it ever takes memory."""
    with nullcontext() if lora else gpu.mode, no_init_weights():
        torch.set_default_dtype(torch.bfloat16)
        hf_model = LlavaOnevisionForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    hf_model.tie_weights()
    if lora:
        inject(hf_model, lora, 0)
    set_trainable(hf_model, rates, lora)
    set_layers(hf_model, recomputed)
    with gpu.mode:
        forward = PackedForward(hf_model, checkpoint_geometry(config), device=gpu.device).train()
        gpu.place_parameters(forward)
        if buffers:
            place_buffers(forward, gpu.device)
    return forward


def run(
    gpu: FakeGpu, forward: PackedForward, batch: PackedBatch, *watch: AbstractContextManager[object]
) -> torch.Tensor:
    """What the engine does with a micro-batch, but for DeepSpeed's part."""
    with gpu.micro_batch(), ExitStack() as stack:
        for one in watch:
            stack.enter_context(one)
        loss = forward(batch)
        (loss * (1 / 7)).backward()
        return loss.detach()
