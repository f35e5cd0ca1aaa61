"""A LlavaOnevision model from a language model and a SigLIP tower, each in a folder of its own, and a new projector.

Which types fit is told by `family/onevision/start.py`. The language model gets rows for `<image>` and `<video>` where
it has none; all other weights are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from llava_train.config.schema import ModelConfig
from llava_train.family.onevision.settings import join_settings, read_config
from llava_train.family.onevision.start import open_starts
from llava_train.model.loading.lazy_weights import read_weight, unread
from llava_train.model.loading.strict_load import load_strictly
from llava_train.start_folder.read import Start

Load = Callable[..., Any]  # load_strictly, or what stands for it
ROWS_MULTIPLE = 64  # of embedding rows where some are added: matrix products run faster on such sizes


def join_parts(
    model: ModelConfig, dtype: torch.dtype, seed: int, load: Load = load_strictly
) -> tuple[LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase]:
    """The model of `model.language_model` and `model.vision_tower`, and its tokenizer; `seed` draws the projector.

    load: `load_strictly` or `load_unread`; embeddings that get more rows are read in any case.

    Raises ConfigError where a part is of another type, or its weights are absent or do not fit.
    """
    text_start, tower_start = open_starts(model)
    settings, tokenizer = join_settings(text_start, tower_start)
    language_model = _load_language_model(text_start, dtype, load)
    _add_rows(language_model, max(settings.image_token_id, settings.video_token_id) + 1)
    tower = _load_tower(tower_start, dtype, load)
    sides = [settings.tile_size * count for count in range(1, 7)]
    config = LlavaOnevisionConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        image_grid_pinpoints=[[height, width] for height in sides for width in sides],
        image_token_index=settings.image_token_id,
        video_token_index=settings.video_token_id,
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        hf_model = LlavaOnevisionForConditionalGeneration(config)
    hf_model.model.vision_tower = tower
    hf_model.model.language_model = language_model.model
    hf_model.lm_head = language_model.lm_head
    _new_projector(hf_model, dtype, seed)
    return hf_model.eval(), tokenizer


def _load_language_model(start: Start, dtype: torch.dtype, load: Load) -> Any:
    """Without a padding id in its config: the embedding of that token, often an end token, would get no gradient."""
    config: Any = read_config(start)
    config.pad_token_id = None
    return load(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "model.language_model", start.folder, dtype, config=config)


def _add_rows(language_model: Any, needed: int) -> None:
    """At least `needed` rows of the embedding and the head, tied or not; new ones are the mean of the old.

    The placeholders' embeddings are never read, features stand in their places; as a class of the head a mean row is
    an unlikely one, while a random row could be a likely one.
    """
    rows = language_model.get_input_embeddings().weight.shape[0]
    if needed <= rows:
        return
    for module in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        for parameter in unread([module.weight]):  # tied ones are read by the first of the two
            read_weight(parameter)
    language_model.resize_token_embeddings(needed, pad_to_multiple_of=ROWS_MULTIPLE, mean_resizing=False)
    with torch.no_grad():
        for module in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            module.weight[rows:] = module.weight[:rows].mean(dim=0, dtype=torch.float32)


def _load_tower(start: Start, dtype: torch.dtype, load: Load) -> SiglipVisionModel:
    """A SigLIP tower. A published one (with its pooling head) loses the head and its last layer.

    LLaVA-OneVision reads the output of layer 26 of SO400M's 27: the last hidden state of the tower cut so.
    A tower whose config has `vision_use_head: false` is taken whole.
    """
    config: Any = read_config(start)
    config = getattr(config, "vision_config", config)
    dropped = r"^(text_model\.|logit_)"
    if config.vision_use_head:
        config.vision_use_head = False
        config.num_hidden_layers -= 1
        dropped += rf"|^(vision_model\.)?(head\.|encoder\.layers\.{config.num_hidden_layers}\.)"
    return load(SiglipVisionModel, "model.vision_tower", start.folder, dtype, config=config, dropped=dropped)


def _new_projector(hf_model: LlavaOnevisionForConditionalGeneration, dtype: torch.dtype, seed: int) -> None:
    """Linear layers as torch's own default draws them, image_newline with std 1/sqrt(hidden): LLaVA-NeXT, b42941c."""
    generator = torch.Generator().manual_seed(seed)
    projector = hf_model.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for linear in (projector.linear_1, projector.linear_2):
            bound = 1 / math.sqrt(linear.in_features)
            for parameter in linear.parameters():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    hidden = hf_model.model.multi_modal_projector.linear_2.out_features
    newline = torch.empty(hidden).normal_(std=1 / math.sqrt(hidden), generator=generator)
    hf_model.model.image_newline = nn.Parameter(newline.to(dtype))
