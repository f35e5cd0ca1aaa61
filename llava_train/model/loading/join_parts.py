"""A model from a language model and a vision tower, each in a folder of its own, and a new projector.

The family of the tower says how they are joined. The language model gets rows for `<image>` and `<video>` where it has
none; all other weights are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedTokenizerBase

from llava_train.config.schema import ModelConfig
from llava_train.family.base import HFModel
from llava_train.family.registry import family_of_parts
from llava_train.model.files.model_class import model_class
from llava_train.model.loading.lazy_weights import read_weight, unread
from llava_train.model.loading.strict_load import load_strictly
from llava_train.model.start.read_model import join_settings, read_config
from llava_train.model.start.start_faults import open_starts
from llava_train.start_folder.read import Start

Load = Callable[..., Any]  # load_strictly, or what stands for it
ROWS_MULTIPLE = 64  # of embedding rows where some are added: matrix products run faster on such sizes


def join_parts(
    model: ModelConfig, dtype: torch.dtype, seed: int, load: Load = load_strictly
) -> tuple[HFModel, PreTrainedTokenizerBase]:
    """The model of `model.language_model` and `model.vision_tower`, and its tokenizer; `seed` draws the projector.

    load: `load_strictly` or `load_unread`; embeddings that get more rows are read in any case.

    Raises ConfigError where a part is of another type, or its weights are absent or do not fit.
    """
    text_start, tower_start = open_starts(model)
    settings, tokenizer = join_settings(text_start, tower_start)
    language_model = _load_language_model(text_start, dtype, load)
    _add_rows(language_model, max(settings.image_token_id, settings.video_token_id) + 1)
    family = family_of_parts(tower_start.config)
    model_type, tower_config, dropped = family.tower(read_config(tower_start))
    tower = load(model_type, "model.vision_tower", tower_start.folder, dtype, config=tower_config, dropped=dropped)
    config = family.joined_config(language_model.config, tower.config, settings.image_token_id, settings.video_token_id)
    with torch.device("meta"):
        hf_model = model_class(config)(config)
    hf_model.model.vision_tower = tower
    hf_model.model.language_model = language_model.model
    hf_model.lm_head = language_model.lm_head
    family.draw_new_weights(hf_model, dtype, seed)
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
