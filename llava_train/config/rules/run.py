"""Rules between and beyond the types of single fields, each a small function that yields faults with their remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava_train.config.gpus import GPUS
from llava_train.config.mixture import READABLE, is_readable
from llava_train.config.rules import adapter
from llava_train.config.rules.bounds import Bound, bounded
from llava_train.config.rules.compare import COMPARE_RULES
from llava_train.config.rules.evaluate import EVALUATE_RULES
from llava_train.config.rules.generate import GENERATE_RULES
from llava_train.config.rules.stage import STAGE_BOUNDS, STAGE_RULES
from llava_train.config.schema import (
    CompareConfig,
    Config,
    ConvertConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    StageConfig,
    StatusConfig,
)
from llava_train.config.typed import nearest, shown
from llava_train.records.file_formats import RECORD_SUFFIXES, split_of
from llava_train.shared.errors import Fault

Rule = Callable[[Any], Iterator[Fault]]

CONFIG_BOUNDS: tuple[Bound, ...] = (
    ("run.seed", ">=", 0),
    ("data.num_workers", ">=", 0),
    ("data.decode_timeout", ">", 0),
    ("data.max_pixels", ">", 0),
    ("data.max_frames", ">", 0),
    ("data.max_media", ">", 0),
    ("plan.world_size", ">=", 1),
    ("plan.simulate", ">=", 0),
    ("plan.mfu", ">", 0),
    ("plan.mfu", "<=", 1),
    ("plan.network", ">", 0),
    ("bench.steps", ">=", 1),
    ("bench.warmup", ">=", 0),
    ("evaluation.batch_size", ">=", 1),
    ("evaluation.max_new_tokens", ">=", 1),
    ("evaluation.every", ">=", 0),
    ("evaluation.held_out", ">=", 0),
    ("evaluation.patience", ">=", 0),
    ("train.max_wait", ">", 0),
    ("log.every", ">=", 1),
    ("preview.count", ">=", 0),
)


def judge(config: Config, complete: bool) -> list[Fault]:
    """Faults of all rules. If the config is not `complete` it lacks fields; a rule that needs one is passed over."""
    faults = [fault for rule in RULES for fault in _run(rule, config, complete=complete)]
    for bound in CONFIG_BOUNDS:
        faults += _run(bounded, "", config, bound, complete=complete)
    for name, stage in getattr(config, "stages", {}).items():
        if not isinstance(stage, StageConfig):
            continue  # has a fault of its own
        key = f"stages.{name}"
        for bound in STAGE_BOUNDS:
            more = ", or frozen" if bound[0].startswith("learning_rate") else ""
            faults += _run(bounded, f"{key}.", stage, bound, more, complete=complete)
        for rule in STAGE_RULES:
            faults += _run(rule, key, stage, complete=complete)
    return faults


def judge_verb(config: Any, complete: bool) -> list[Fault]:
    """As `judge`, for the settings of a verb that reads no recipe."""
    return [fault for rule in VERB_RULES[type(config)] for fault in _run(rule, config, complete=complete)]


def _run(rule: Callable[..., Iterator[Fault]], *arguments: Any, complete: bool) -> list[Fault]:
    faults = []
    try:
        for fault in rule(*arguments):
            faults.append(fault)
    except AttributeError:
        if complete:
            raise
    return faults


def run_name_is_a_folder_name(config: Config) -> Iterator[Fault]:
    if not is_folder_name(config.run.name):
        yield Fault("run.name", f"{shown(config.run.name)} is no folder name", "no /, no leading dot, not empty")


def run_dir_is_set(config: Config) -> Iterator[Fault]:
    if not config.run.dir:
        yield Fault("run.dir", "is empty", "leave it out for runs/NAME, or name a folder")


def stages_not_empty(config: Config) -> Iterator[Fault]:
    if not config.stages:
        yield Fault("stages", "is empty: nothing would train", "choose a recipe: +recipe=NAME")
    for name in config.stages:
        if not is_folder_name(name):
            yield Fault(f"stages.{name}", "is no folder name", "no /, no leading dot, not empty")


def model_has_a_start(config: Config) -> Iterator[Fault]:
    if config.model.init:
        return
    for part in ("language_model", "vision_tower"):
        if not getattr(config.model, part):
            yield Fault(
                f"model.{part}", "is empty, and so is model.init", f"set model.init=DIR_OR_HUB_NAME or model.{part}"
            )


def checkpoint_template_has_a_checkpoint(config: Config) -> Iterator[Fault]:
    name, stage = next(iter(config.stages.items()), ("", None))
    if stage and stage.template == "checkpoint" and not config.model.init:
        problem = (
            "checkpoint is the chat template of model.init, which is empty: that of a language model has no images"
        )
        yield Fault(
            f"stages.{name}.template", problem, f"set model.init=DIR_OR_HUB_NAME or stages.{name}.template=qwen"
        )


def attention_fits_precision(config: Config) -> Iterator[Fault]:
    if config.model.attention not in ("flash_attn", "varlen"):
        return
    for name, stage in config.stages.items():
        if stage.precision != "bf16":
            problem = (
                f"{config.model.attention} has no {stage.precision} kernel, and stages.{name} is {stage.precision}"
            )
            yield Fault("model.attention", problem, f"set model.attention=auto or stages.{name}.precision=bf16")


def data_file_is_readable(config: Config) -> Iterator[Fault]:
    for key, file in (("data.file", config.data.file), ("evaluation.file", config.evaluation.file)):
        if file and not is_readable(file, config.data.root):
            yield Fault(key, f"{file} is of no known kind", f"allowed: {READABLE}")


def video_decoder_is_installed(config: Config) -> Iterator[Fault]:
    decoder = config.data.video_decoder
    if decoder != "pyav" and not find_spec(decoder):
        remedy = f"install llava_train[{decoder}], or leave PyAV: data.video_decoder=pyav"
        yield Fault("data.video_decoder", f"{decoder} is not installed", remedy)


def data_root_is_set(config: Config) -> Iterator[Fault]:
    if not config.data.root:
        yield Fault(
            "data.root", "is empty", "name the folder that files and media are relative to; . for the current one"
        )


def tasks_have_files(config: Config) -> Iterator[Fault]:
    for name, task in config.evaluation.tasks.items():
        key = f"evaluation.tasks.{name}"
        if split_of(task.file)[0].suffix not in RECORD_SUFFIXES:
            yield Fault(f"{key}.file", f"{shown(task.file)} is no record file", f"allowed: {' '.join(RECORD_SUFFIXES)}")
        if task.limit < 0:
            yield Fault(f"{key}.limit", f"{task.limit} is out of range", "allowed: >= 0, and 0 means all")


def held_out_loss_has_samples(config: Config) -> Iterator[Fault]:
    evaluation, measured = config.evaluation, config.evaluation.every > 0
    if evaluation.file and evaluation.held_out > 0:
        yield Fault("evaluation.held_out", "is set, and so is evaluation.file", "set one of them")
    if evaluation.held_out >= 1 and evaluation.held_out % 1:
        problem = f"{evaluation.held_out} is neither a number of samples nor a share"
        yield Fault("evaluation.held_out", problem, "allowed: a whole number, or a share below 1")
    if measured and not (evaluation.file or evaluation.held_out):
        remedy = "set evaluation.held_out=0.05, or a file of samples: evaluation.file=FILE"
        yield Fault("evaluation.every", f"is {evaluation.every}, and no sample is held out", remedy)
    ignored = {"file": evaluation.file, "held_out": evaluation.held_out > 0, "patience": evaluation.patience > 0}
    for key, is_set in ignored.items():
        if is_set and not measured:
            problem = "is set, and no held-out loss is measured: evaluation.every is 0"
            yield Fault(f"evaluation.{key}", problem, "set evaluation.every=N, in optimiser steps")


def best_is_measured(config: Config) -> Iterator[Fault]:
    for name, stage in config.stages.items():
        if stage.checkpoint.best == "held_out_loss" and not config.evaluation.every:
            key = f"stages.{name}.checkpoint.best"
            remedy = "set evaluation.every=N and evaluation.held_out=0.05 or evaluation.file=FILE"
            yield Fault(key, "is held_out_loss, which is never measured", remedy)


def packs_may_be_lowered(config: Config) -> Iterator[Fault]:
    for name, stage in config.stages.items():
        if config.train.fit and stage.pack.unit == "tokens":
            problem = f"lowers the budgets of packs, and of packs are the steps of stages.{name} made"
            yield Fault("train.fit", problem, f"set train.fit=false or stages.{name}.pack.unit=samples")


def trackers_once(config: Config) -> Iterator[Fault]:
    if len(set(config.log.trackers)) < len(config.log.trackers):
        yield Fault("log.trackers", f"{config.log.trackers} names one twice", "name each once")


def trackers_are_installed(config: Config) -> Iterator[Fault]:
    for name in config.log.trackers:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, as wandb leaves, is no package
            package = "'llava_train[tensorboard]'" if name == "tensorboard" else name
            remedy = f"pip install {package}, or leave it out: log.trackers=[]"
            yield Fault("log.trackers", f"{name} is not installed", remedy)


def shown_stage_exists(config: Config) -> Iterator[Fault]:
    names = list(config.stages)
    for verb in ("preview", "plan", "bench"):
        key, stage = f"{verb}.stage", getattr(config, verb).stage
        if stage and stage not in names:
            close = nearest(stage, names)
            remedy = f"did you mean {close}?" if close else f"known: {', '.join(names)}; or leave it empty"
            yield Fault(key, f"no stage {stage}", remedy)


def planned_gpu_is_known(config: Config) -> Iterator[Fault]:
    if config.plan.gpu not in GPUS:
        yield Fault("plan.gpu", f"{config.plan.gpu} is not known", f"known: {', '.join(GPUS)}")


def geometry_of_a_checkpoint(config: Config) -> Iterator[Fault]:
    name, stage = next(iter(config.stages.items()), ("", None))
    if stage and stage.image.mode == "checkpoint" and not config.model.init:
        image = "{mode:anyres,max_tiles:9,grid:[[1,2],[2,1]]}"
        remedy = f"set model.init=DIR_OR_HUB_NAME, or stages.{name}.image={image}"
        yield Fault(f"stages.{name}.image.mode", "is that of a checkpoint, and model.init is empty", remedy)


def convert_reads_folders(config: ConvertConfig) -> Iterator[Fault]:
    for key in ("original", "base", "vision_tower"):
        folder = getattr(config, key)
        if not (Path(folder).is_dir() if folder else key != "original"):
            yield Fault(key, f"no folder {shown(folder)}", f"set {key}=DIR, a folder on this machine")


def convert_writes_a_new_folder(config: ConvertConfig) -> Iterator[Fault]:
    if not config.out or Path(config.out).exists():
        problem = f"{config.out} is there already" if config.out else "is empty"
        yield Fault("out", problem, "set out=DIR, a folder that does not exist yet")


def reads_a_run(config: ExportConfig | StatusConfig) -> Iterator[Fault]:
    if not (config.run.dir and Path(config.run.dir).is_dir()):
        yield Fault("run.dir", f"no folder {shown(config.run.dir)}", "name the folder of a run, as runs/NAME")


def export_step_is_in_range(config: ExportConfig) -> Iterator[Fault]:
    if config.step < 0:
        yield Fault("step", f"{config.step} is out of range", "allowed: >= 1, or 0 for the latest")


def export_replaces_nothing_but_an_export(config: ExportConfig) -> Iterator[Fault]:
    out = Path(config.out)
    if not config.out:
        yield Fault("out", "is empty", "set out=DIR, the folder to write")
    elif out.exists() and not (out.is_dir() and (is_export(out) or not any(out.iterdir()))):
        yield Fault("out", f"{out} is there and holds no export", "set out=DIR, a new folder or an export to replace")


def is_export(folder: Path) -> bool:
    """Whether a folder is a checkpoint or adapter that we wrote: with a card, which a stage's `base/` has not."""
    has_config = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return has_config and all((folder / name).is_file() for name in ("llava_train.json", "README.md"))


def is_folder_name(name: str) -> bool:
    """Whether a name serves as one folder below another."""
    return bool(name.strip()) and not name.startswith(".") and "/" not in name and name.isprintable()


RULES: tuple[Rule, ...] = (
    run_name_is_a_folder_name,
    run_dir_is_set,
    stages_not_empty,
    model_has_a_start,
    checkpoint_template_has_a_checkpoint,
    *adapter.RULES,
    geometry_of_a_checkpoint,
    attention_fits_precision,
    data_file_is_readable,
    video_decoder_is_installed,
    data_root_is_set,
    tasks_have_files,
    held_out_loss_has_samples,
    best_is_measured,
    packs_may_be_lowered,
    trackers_once,
    trackers_are_installed,
    shown_stage_exists,
    planned_gpu_is_known,
)
VERB_RULES: dict[type, tuple[Rule, ...]] = {
    GenerateConfig: GENERATE_RULES,
    EvaluateConfig: EVALUATE_RULES,
    CompareConfig: COMPARE_RULES,
    ConvertConfig: (convert_reads_folders, convert_writes_a_new_folder),
    ExportConfig: (reads_a_run, export_step_is_in_range, export_replaces_nothing_but_an_export),
    StatusConfig: (reads_a_run,),
}
