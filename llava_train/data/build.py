"""A stage's data from its configuration: index, order and the stream of steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llava_train.config.errors import ConfigError, DataError
from llava_train.config.schema import DataConfig, StageConfig
from llava_train.data.dataset import StepBatches, StepDataset, to_arrays, to_tensors
from llava_train.data.encode import Encoder, text_tokenizer
from llava_train.data.index import load_index, refusal
from llava_train.data.media import make_media_reader
from llava_train.data.mixture import present_sources
from llava_train.data.processes import follow_parent, shielded
from llava_train.data.sampler import StepOrder
from llava_train.family.onevision.geometry import Geometry
from llava_train.family.onevision.start import template_fault
from llava_train.family.onevision.template import IMAGE_TAG, VIDEO_TAG, make_template


class StageData:
    """num_samples: draws of one epoch. refused: samples found bad before decoding (under data.on_error=skip)."""

    def __init__(
        self,
        dataset: StepDataset,
        order: StepOrder,
        num_samples_by_source: dict[str, int],
        refused: list[DataError],
        data: DataConfig,
    ):
        self._dataset, self._data = dataset, data
        self.steps_per_epoch = order.steps_per_epoch
        self.num_samples_by_source = num_samples_by_source
        self.num_samples = sum(num_samples_by_source.values())
        self.refused = refused

    def step_batches(self, start_step: int, num_steps: int) -> Iterator[StepBatches]:
        """Steps start_step, start_step + 1, ... of this rank, prepared ahead by `data.num_workers` processes.

        Raises DataError for a sample that cannot be decoded, under data.on_error=error.
        """
        workers = min(self._data.num_workers, len(os.sched_getaffinity(0)))  # more would only wait for each other
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=range(start_step, start_step + num_steps),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            collate_fn=to_arrays,  # type: ignore[arg-type]  # without batching it is given the item itself
            worker_init_fn=follow_parent,
            multiprocessing_context="fork" if workers else None,  # its parent must be this process: see follow_parent
        )
        with shielded():
            items = iter(loader)
        for item in items:
            if item.skipped and self._data.on_error == "error":
                raise refusal(item.skipped)
            yield to_tensors(item)


def make_encoder(tokenizer: PreTrainedTokenizerBase, stage: StageConfig, stage_name: str) -> Encoder:
    """The encoder of a stage, for a tokenizer that has `<image>` and `<video>`.

    Raises ConfigError where it lacks a special token of the stage's template.
    """
    ids = tokenizer.get_added_vocab()
    template = make_template(stage.template, stage.label_rule, stage.tag_policy)
    if fault := template_fault(stage_name, stage.template, ids):
        raise ConfigError([fault])
    return Encoder(tokenizer, ids[IMAGE_TAG], ids[VIDEO_TAG], template, stage.max_length)


def build_data(
    data: DataConfig,
    stage: StageConfig,
    stage_name: str,
    tokenizer: PreTrainedTokenizerBase,
    geometry: Geometry,
    seed: int,
    rank: int,
    world_size: int,
    cache_dir: Path,
) -> StageData:
    """Reads or makes the stage's index. Raises ConfigError (sources, template), DataError (samples, on_error=error)."""
    sources = present_sources(data, stage)
    encoder = make_encoder(tokenizer, stage, stage_name)
    media = make_media_reader(data, stage.video, geometry)
    vocabulary = hashlib.sha256(text_tokenizer(tokenizer).to_str().encode()).hexdigest()
    template = [stage.template, stage.label_rule, stage.tag_policy, stage.max_length]
    settings = [vocabulary, encoder.placeholders, template, asdict(geometry), asdict(stage.video), data.max_pixels]
    index = load_index(sources, encoder, media, seed, settings, data.num_workers, cache_dir)
    if index.refused and data.on_error == "error":
        raise refusal(index.refused)
    num_samples = sum(index.num_samples_by_source.values())
    if not num_samples:
        raise refusal(index.refused) if index.refused else DataError(", ".join(sources), "-", "no samples")
    order = StepOrder(num_samples, stage.global_batch_size, seed, stage_name)
    dataset = StepDataset(index, encoder, media, order, stage.pack, rank, world_size)
    return StageData(dataset, order, index.num_samples_by_source, index.refused, data)
