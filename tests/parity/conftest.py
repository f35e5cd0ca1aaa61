"""A tiny model twice, from one checkpoint: ours to run packed, transformers' to run as it is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from onevision_reference import Ours, Theirs
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from llava_train.config.schema import ModelConfig
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.loading.load_model import load_model
from llava_train.model.loading.tiny_model import make_tiny


@dataclass
class Pair:
    forward: PackedForward
    ours: Ours
    theirs: Theirs


@pytest.fixture(scope="session", params=[(28, 7, True), (42, 14, False)], ids=["side4-tied", "side3-untied"])
def pair(request, tmp_path_factory) -> Pair:
    """Tiles of an even and of an odd side."""
    tile_size, patch_size, tied = request.param
    folder = make_tiny(
        tmp_path_factory.mktemp("pair") / "tiny", tied=tied, tile_size=tile_size, patch_size=patch_size, max_tiles=4
    )
    loaded = load_model(ModelConfig(str(folder), "", "", "auto"), "fp32", folder.parent)
    config = loaded.model.config
    geometry = checkpoint_geometry(config)
    theirs = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = Ours(loaded.tokenizer, geometry, config.image_token_index, config.video_token_index)
    return Pair(PackedForward(loaded.model, geometry), ours, Theirs(theirs, tokenizer))
