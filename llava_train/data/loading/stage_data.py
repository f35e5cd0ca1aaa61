"""A stage's data from its configuration: index, order and the stream of steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llava_train.config.schema import DataConfig, EvaluationConfig, StageConfig, TooLong
from llava_train.costs.dims import ModelDims
from llava_train.costs.flops import sample_cost
from llava_train.data.index.make_index import Reading, load_index
from llava_train.data.index.stage_samples import IndexedSource, StageSamples, refusal
from llava_train.data.loading.steps import StepBatches, StepDataset, to_arrays, to_tensors
from llava_train.data.media.sample_media import make_media_reader
from llava_train.data.packing.order import OnceOrder, Order, make_order
from llava_train.data.packing.packs import Budget, PackSizes, SampleSizes
from llava_train.data.samples.encode import Encoder, text_tokenizer
from llava_train.data.samples.held_out import held_out_samples
from llava_train.data.samples.parse import media_roots
from llava_train.data.samples.sampled_records import present_sources
from llava_train.family.base import Geometry
from llava_train.records.identity import SourceIdentity, identify
from llava_train.records.readers.open import open_source
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.child_processes import follow_parent, shielded
from llava_train.shared.errors import ConfigError, DataError
from llava_train.text.checkpoint_template import stage_template
from llava_train.text.named_templates import template_fault

HELD_OUT_BATCH = 256  # held-out samples that are packed together


class StageData:
    """Steps of samples.

    num_samples: draws of one epoch. refused: samples found bad before decoding (under data.on_error=skip). notes: what
    is said of the others before the first step. records: what identifies those of each source.
    held_out: samples that are measured and not trained on, None where there are none; its steps are each seen once.
    """

    def __init__(
        self,
        dataset: StepDataset,
        order: Order,
        num_samples_by_source: dict[str, int],
        refused: list[DataError],
        notes: list[str],
        data: DataConfig,
        records: dict[str, SourceIdentity],
        held_out: StageData | None = None,
    ):
        self._dataset, self._data, self.records = dataset, data, records
        self.steps_per_epoch = order.steps_per_epoch
        self.num_samples_by_source = num_samples_by_source
        self.num_samples = sum(num_samples_by_source.values())
        self.refused, self.notes = refused, notes
        self.held_out = held_out

    @property
    def sizes(self) -> SampleSizes:
        """Of the draws of an epoch."""
        return self._dataset.sizes

    def name_of(self, draw: int) -> str:
        """Source and record of one of them."""
        return self._dataset.name_of(draw)

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
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=follow_parent,
            multiprocessing_context="fork" if workers else None,  # its parent must be this process: see follow_parent
        )
        with shielded():
            items = iter(loader)
        for item in items:
            if item.skipped and self._data.on_error == "error":
                raise refusal(item.skipped)
            yield to_tensors(item)


class _Read(NamedTuple):
    """The samples of some sources, files of these that were passed over, in words, and what identifies the records."""

    samples: StageSamples
    passed_over: list[str]
    records: dict[str, SourceIdentity]


def make_encoder(
    tokenizer: PreTrainedTokenizerBase, stage: StageConfig, stage_name: str, too_long: TooLong = "error"
) -> Encoder:
    """The encoder of a stage, for a tokenizer that has `<image>` and `<video>`.

    Raises ConfigError where it lacks a special token of the stage's template, or a chat template to learn by.
    """
    ids = tokenizer.get_added_vocab()
    if fault := template_fault(stage_name, stage.template, ids):
        raise ConfigError([fault])
    key = f"stages.{stage_name}.template"
    template = stage_template(stage.template, stage.label_rule, stage.tag_policy, tokenizer, key)
    return Encoder(tokenizer, ids[IMAGE_TAG], ids[VIDEO_TAG], template, stage.max_length, too_long)


def build_data(
    data: DataConfig,
    stage: StageConfig,
    stage_name: str,
    tokenizer: PreTrainedTokenizerBase,
    geometry: Geometry,
    dims: ModelDims,
    seed: int,
    rank: int,
    world_size: int,
    cache_dir: Path,
    evaluation: EvaluationConfig | None = None,
) -> StageData:
    """Reads or makes the indexes of the stage's sources; sets apart what `evaluation` holds out of training.

    dims: of the model, by which packs are made to cost the same.
    Raises ConfigError (sources, template, nothing left to train on), DataError (samples, on_error=error).
    """
    encoder = make_encoder(tokenizer, stage, stage_name, data.too_long)
    media = make_media_reader(data, stage.video, geometry)
    vocabulary = hashlib.sha256(text_tokenizer(tokenizer).to_str().encode()).hexdigest()
    template: list[Any] = [stage.template, stage.label_rule, stage.tag_policy]
    if stage.template == "checkpoint":
        template += [tokenizer.chat_template, tokenizer.special_tokens_map]
    settings = [vocabulary, encoder.placeholders, template, data.video_decoder]

    def read(data: DataConfig) -> _Read:
        sources, passed_over, records = [], [], {}
        for name, source in present_sources(data, stage).items():
            reading = Reading(encoder, media, media_roots(data, source))
            opened = open_source(os.path.abspath(source.file), name)
            index = load_index(opened, reading, settings, data.num_workers, cache_dir, mend=rank == 0)
            passed_over += [told] if rank == 0 and (told := opened.passed_over()) else []
            sources.append(IndexedSource(name, source, index, reading.packed_in(index.folder)))
            records[name] = identify(opened, index.digests)
        samples = StageSamples(sources, data, media, stage.max_length, seed)
        _refuse(samples, data)
        return _Read(samples, passed_over, records)

    cost = sample_cost(dims, stage)  # as if nothing were, so that packs stay when that changes

    def steps(read: _Read, draws: np.ndarray, order: Order, held_out: StageData | None = None) -> StageData:
        dataset = StepDataset(read.samples, draws, encoder, media, order, rank, world_size)
        counts, notes = read.samples.num_by_source(draws), [*read.passed_over, *read.samples.notes(draws)]
        return StageData(dataset, order, counts, read.samples.refused, notes, data, read.records, held_out)

    def measured(read: _Read, positions: np.ndarray) -> StageData:
        budget = Budget(stage.pack.max_tokens, stage.pack.max_tiles)
        sizes = PackSizes.of(read.samples.sizes[positions], cost)
        return steps(read, positions, OnceOrder(sizes, budget, HELD_OUT_BATCH))

    own, held_out = read(data), None
    samples, trained = own.samples, np.arange(len(own.samples))
    if evaluation and evaluation.file:
        other = read(replace(data, file=evaluation.file))
        held_out = measured(other, np.arange(len(other.samples)))
    elif evaluation and evaluation.held_out:
        held = held_out_samples(samples.content(data.num_workers), evaluation.held_out, seed, stage_name)
        held_out, trained = measured(own, trained[held]), trained[~held]
    draws = samples.draws(trained)
    order = make_order(PackSizes.of(samples.sizes[draws], cost), stage, stage_name, seed, world_size, cache_dir)
    return steps(own, draws, order, held_out)


def _refuse(samples: StageSamples, data: DataConfig) -> None:
    """Raises DataError for refused samples under on_error=error, and where there is no other."""
    if samples.faults and data.on_error == "error":
        raise refusal(samples.faults)
    if not len(samples):
        raise refusal(samples.refused) if samples.refused else DataError(data.file or "-", "-", "no samples")
