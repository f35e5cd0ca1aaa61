"""One factory per part of a stage: its model, its data, its trainer."""

from __future__ import annotations

from pathlib import Path

import torch

from llava_train.config.schema import Config
from llava_train.costs.dims import read_dims
from llava_train.data.index.make_index import index_folder
from llava_train.data.loading import stage_data as data_build
from llava_train.family.base import Geometry
from llava_train.family.registry import family_of
from llava_train.model.forward.attention import choose_kernel
from llava_train.model.hf_folder.preparation import stage_geometries
from llava_train.model.loading.lazy_weights import load_unread
from llava_train.model.loading.load_model import DTYPES, LoadedModel, load_model
from llava_train.model.loading.strict_load import load_strictly
from llava_train.ranks.process_group import Ranks
from llava_train.ranks.signals import StopSignal
from llava_train.train.run.stages import Stage
from llava_train.train.trainer import Trainer


def build_model(config: Config, stage: Stage, ranks: Ranks) -> LoadedModel:
    """The stage's start, in its precision; the run's seed draws what is new. Raises ConfigError.

    At ZeRO 3 weights stay in their files, for the engine to read one at a time into the ranks' shards; not where they
    are quantised while they are read, nor where adapters start from their norms (DoRA).
    """
    choose_kernel(config.model.attention, ranks.device, DTYPES[stage.settings.precision])  # what cannot run fails now
    torch.manual_seed(config.run.seed)
    settings = stage.settings
    reads_norms = any(adapter.dora for adapter in settings.lora.values())
    load = load_unread if settings.zero.level == 3 and not reads_norms else load_strictly
    return load_model(stage.start, settings.precision, Path(config.run.dir), config.run.seed, settings.load_in, load)


def build_data(config: Config, stage: Stage, model: LoadedModel, ranks: Ranks) -> data_build.StageData:
    """The stage's samples in steps. Rank 0 looks through the files first; the others read what it found."""
    with ranks.first_before_others():
        return data_build.build_data(
            config.data,
            stage.settings,
            stage.name,
            model.tokenizer,
            _geometry(model, stage),
            read_dims(model.model.config),
            config.run.seed,
            ranks.rank,
            ranks.world_size,
            index_folder(config),
            config.evaluation,
        )


def build_trainer(
    config: Config, stage: Stage, model: LoadedModel, data: data_build.StageData, ranks: Ranks, stop: StopSignal
) -> Trainer:
    return Trainer(config, stage, model, _geometry(model, stage), data, ranks, stop)


def _geometry(model: LoadedModel, stage: Stage) -> Geometry:
    config = model.model.config
    tower, stages = config.vision_config, {stage.name: stage.settings}
    init, family = str(model.folder or ""), family_of(config)
    return stage_geometries(stages, init, family, tower.image_size, tower.patch_size)[stage.name]
