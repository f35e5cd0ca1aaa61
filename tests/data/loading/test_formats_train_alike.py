"""The same 500 samples in every format give the same packs, ids, labels and pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_every_format import NUMBERS, WRITERS, write_messages

from llava_train.config.load import load
from llava_train.costs.dims import KNOWN_DIMS
from llava_train.data.loading.stage_data import build_data
from llava_train.family.onevision.family import OneVision
from llava_train.records.identity import identify_again
from llava_train.records.readers.open import open_source

FORMATS = {**WRITERS, "messages": write_messages}
DIMS = KNOWN_DIMS["Qwen/Qwen2-0.5B-Instruct"]


def trained_on(name: str, folder: Path, tokenizer) -> list[tuple]:
    """All that an epoch of a stage would see, pack by pack."""
    folder.mkdir()
    file = FORMATS[name](folder)
    words = ["+recipe=tiny", f"data.file={file}", f"data.root={folder}", "data.num_workers=0"]
    config = load([*words, "stages.onevision.global_batch_size=64", "stages.onevision.max_length=256"])
    stage = config.stages["onevision"]
    geometry = OneVision().geometry(32, 8, stage.image)
    data = build_data(config.data, stage, "onevision", tokenizer, geometry, DIMS, 0, 0, 1, folder / "cache")
    assert (data.num_samples, data.refused) == (len(NUMBERS), [])
    [source] = data.records
    assert data.records == identify_again({source: open_source(file, source)}, {})  # without the index
    return [
        (
            [name.split("/")[1] for name in batch.sample_ids],
            batch.cu_seqlens.tolist(),
            batch.input_ids.tolist(),
            batch.labels.tolist(),
            batch.visuals,
            batch.pixel_values.numpy().tobytes(),
        )
        for step in data.step_batches(0, data.steps_per_epoch)
        for batch in step.batches
    ]


@pytest.fixture(scope="module")
def from_json(tokenizer, tmp_path_factory):
    return trained_on("json", tmp_path_factory.mktemp("json") / "data", tokenizer)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "json"])
def test_every_format_trains_alike(name, from_json, tokenizer, tmp_path):
    assert sum(len(pack[0]) for pack in from_json) == len(NUMBERS)
    assert trained_on(name, tmp_path / "data", tokenizer) == from_json
