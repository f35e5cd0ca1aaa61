"""`check`: every fault of a run at once, its files included, without a GPU and without loading weights."""

from __future__ import annotations

import math

from llava_train.config.load import collect
from llava_train.config.rules.adapter import how_trained
from llava_train.config.rules.files import StageRecords, check_files
from llava_train.config.schema import Config, StageConfig
from llava_train.data.samples.sampled_records import present_sources, unread_of_sources
from llava_train.model.start.start_faults import model_faults
from llava_train.shared.errors import ConfigError


def run(argv: list[str]) -> int:
    """Prints a summary of a sound run. Raises ConfigError with all faults of one that is not."""
    from llava_train.data.preview.spot_check import (
        look_at_records,  # loads what reads records: no faulty command waits for it
    )

    config, records = load_checked(argv)
    look = look_at_records(config)
    passed = unread_of_sources(present_sources(config.data, stage) for stage in config.stages.values())
    if look.faults:
        print(*passed, sep="\n", end="\n" * bool(passed))
        raise ConfigError(look.faults)
    print(summary(config, records), look, *passed, sep="\n")
    return 0


def load_checked(argv: list[str]) -> tuple[Config, dict[str, StageRecords]]:
    """The run that `argv` describes, and its records by stage. Raises ConfigError with all faults, files included."""
    config, faults = collect(argv)
    records, missing = check_files(config, [model_faults], complete=not faults)
    if faults or missing:
        raise ConfigError(faults + missing)
    return config, records


def summary(config: Config, records: dict[str, StageRecords]) -> str:
    """What would run, stage by stage."""
    model = config.model
    start = model.init or f"{model.language_model} and {model.vision_tower}, with a new projector"
    lines = [f"{config.run.name}: no faults. Starts from {start}; writes to {config.run.dir}, seed {config.run.seed}."]
    for name, stage in config.stages.items():
        lines += [f"stage {name}", *(f"  {key:<10} {text}" for key, text in _stage_rows(config, stage, records[name]))]
    return "\n".join(lines)


def _stage_rows(config: Config, stage: StageConfig, records: StageRecords) -> list[tuple[str, str]]:
    rates, zero = stage.learning_rate, stage.zero
    parts = [f"{part} {how_trained(stage, part)}" for part, rate in vars(rates).items() if rate != "frozen"]
    frozen = [part for part, rate in vars(rates).items() if rate == "frozen"]
    offloaded = ["optimizer"] * zero.offload_optimizer + ["parameters"] * zero.offload_parameters
    rows = [
        ("trains", ", ".join(parts) + (f"; frozen: {', '.join(frozen)}" if frozen else "")),
        ("data", f"{config.data.file or stage.mixture}: {_samples(records)}"),
        ("steps", f"{_steps(config, stage, records)}, each of {stage.step_size}"),
        ("images", _images(stage)),
        ("precision", stage.precision),
        ("ZeRO", f"{zero.level}" + (f", on the CPU: {', '.join(offloaded)}" if offloaded else "")),
    ]
    if config.evaluation.every:
        held_out = config.evaluation.file or f"{config.evaluation.held_out:g} of these"
        rows.append(("held out", f"{held_out}, measured every {config.evaluation.every} steps"))
    if records.left_out:
        rows.append(("left out", ", ".join(records.left_out)))
    return rows


def _images(stage: StageConfig) -> str:
    if stage.image.mode == "checkpoint":
        return "grid and tiles of the checkpoint"
    return stage.image.mode + (f", {len(stage.image.grid)} canvases" if stage.image.grid else "")


def _samples(records: StageRecords) -> str:
    large = len(records.not_counted)
    return f"{records.num_samples} samples" + (f" and {large} sources that are not counted here" if large else "")


def _steps(config: Config, stage: StageConfig, records: StageRecords) -> str:
    if records.not_counted or stage.pack.unit == "tokens":
        return f"{stage.max_steps} at the most" if stage.max_steps else f"{stage.epochs:g} epochs"
    held_out = 0 if config.evaluation.file else config.evaluation.held_out
    held_out = held_out if held_out >= 1 else math.ceil(held_out * records.num_samples)
    per_epoch = math.ceil((records.num_samples - held_out) / stage.global_batch_size)
    by_epochs = math.ceil(per_epoch * stage.epochs)
    return str(min(n for n in (by_epochs, stage.max_steps) if n))
