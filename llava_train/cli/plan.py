"""`plan`: what the stages of a run will cost on GPUs that are not here: steps, waiting, memory, hours."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from llava_train.config.gpus import GPUS
from llava_train.config.load import load
from llava_train.config.schema import Config
from llava_train.costs.dims import ModelDims
from llava_train.data.index.make_index import index_folder
from llava_train.data.loading.stage_data import build_data
from llava_train.data.packing.order import ranks_fault
from llava_train.model.start.read_model import model_dims, model_family, read_model
from llava_train.plan.balance import Draws, plan_stage, simulated
from llava_train.plan.tables import print_plan
from llava_train.shared.errors import ConfigError

WIDTH = 110  # columns; a pipe has none of its own


def run(argv: list[str]) -> int:
    """Prints the plan of each stage. Raises ConfigError, and DataError where samples are bad (data.on_error=error)."""
    from llava_train.model.loading.load_model import resolve_init

    config = load(argv)
    names = [config.plan.stage] if config.plan.stage else list(config.stages)
    faults = [ranks_fault(config.stages[name].pack, name, config.plan.world_size) for name in names]
    if found := [fault for fault in faults if fault]:
        raise ConfigError(found)
    console = Console(width=WIDTH, highlight=False)
    with TemporaryDirectory() as folder:
        config = replace(config, model=resolve_init(config.model, Path(folder)))
        dims = model_dims(config.model)
        plans = folder if config.plan.simulate else index_folder(config)
        for name in names:
            stage = config.stages[name]
            draws = _draws(config, name, dims)
            ranks, memory = config.plan.world_size, GPUS[config.plan.gpu].memory
            plan = plan_stage(draws, stage, name, dims, ranks, memory, config.run.seed, Path(plans))
            print_plan(console, config, name, plan, dims)
    return 0


def _draws(config: Config, name: str, dims: ModelDims) -> Draws:
    from llava_train.model.hf_folder.preparation import stage_geometries

    stage = config.stages[name]
    family = model_family(config.model)
    geometry = stage_geometries(config.stages, config.model.init, family, dims.tile_size, dims.patch_size)[name]
    if config.plan.simulate:
        return simulated(config.plan.simulate, geometry, stage)
    _, tokenizer = read_model(config.model)
    what = (config.data, stage, name, tokenizer, geometry, dims)
    data = build_data(*what, config.run.seed, 0, config.plan.world_size, index_folder(config), config.evaluation)
    return Draws(data.sizes, data.name_of, dict(Counter(error.reason for error in data.refused)))
