"""Rules of one stage, whatever the run around it: amounts within bounds, settings that fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llava_train.config.rules import adapter
from llava_train.config.rules.bounds import Bound
from llava_train.config.schema import StageConfig
from llava_train.shared.errors import Fault

StageRule = Callable[[str, StageConfig], Iterator[Fault]]

STAGE_BOUNDS: tuple[Bound, ...] = (
    ("learning_rate.vision_tower", ">", 0),
    ("learning_rate.projector", ">", 0),
    ("learning_rate.language_model", ">", 0),
    ("epochs", ">=", 0),
    ("max_steps", ">=", 0),
    ("global_batch_size", ">=", 1),
    ("schedule.warmup_ratio", ">=", 0),
    ("schedule.warmup_ratio", "<", 1),
    ("optimizer.weight_decay", ">=", 0),
    ("optimizer.beta1", ">=", 0),
    ("optimizer.beta1", "<", 1),
    ("optimizer.beta2", ">=", 0),
    ("optimizer.beta2", "<", 1),
    ("optimizer.epsilon", ">", 0),
    ("optimizer.max_grad_norm", ">", 0),
    ("max_length", ">=", 2),
    ("video.fps", ">", 0),
    ("video.max_frames", ">=", 1),
    ("pack.max_tokens", ">=", 1),
    ("pack.max_tiles", ">=", 1),
    ("pack.window", ">=", 1),
    ("checkpoint.every", ">=", 0),
    ("checkpoint.keep", ">=", 1),
    ("checkpoint.keep_every", ">=", 0),
    ("checkpoint.export_every", ">=", 0),
)


def something_trains(key: str, stage: StageConfig) -> Iterator[Fault]:
    rates = stage.learning_rate
    if rates.vision_tower == rates.projector == rates.language_model == "frozen":
        yield Fault(
            f"{key}.learning_rate", "every part is frozen", f"give one a rate, as {key}.learning_rate.projector=1e-3"
        )


def stage_has_an_end(key: str, stage: StageConfig) -> Iterator[Fault]:
    if stage.epochs == 0 and stage.max_steps == 0:
        yield Fault(
            f"{key}.epochs", "is 0, and so is max_steps: the stage has no step", f"set {key}.epochs or {key}.max_steps"
        )


def offload_fits_zero_level(key: str, stage: StageConfig) -> Iterator[Fault]:
    zero = stage.zero
    if zero.offload_optimizer and zero.level == 0:
        remedy = f"set {key}.zero.level=2 or 3, or offload_optimizer=false"
        yield Fault(f"{key}.zero.offload_optimizer", "needs a sharded optimiser, and zero.level is 0", remedy)
    if zero.offload_parameters and zero.level != 3:
        remedy = f"set {key}.zero.level=3, or offload_parameters=false"
        yield Fault(
            f"{key}.zero.offload_parameters", f"needs sharded parameters, and zero.level is {zero.level}", remedy
        )


def step_is_counted_in_its_unit(key: str, stage: StageConfig) -> Iterator[Fault]:
    pack, where = stage.pack, f"{key}.pack.per_step"
    if pack.unit == "tokens" and pack.per_step < 1:
        problem = f"{pack.per_step} packs make no step, and {key}.pack.unit is tokens"
        yield Fault(where, problem, f"set {where}=N, a multiple of the number of ranks; `plan` says what N gives")
    if pack.unit == "samples" and pack.per_step:
        problem = f"{key}.pack.unit=samples has steps of {key}.global_batch_size samples and would ignore it"
        yield Fault(where, problem, f"set {where}=0 or {key}.pack.unit=tokens")


def grid_fits_mode(key: str, stage: StageConfig) -> Iterator[Fault]:
    image, where = stage.image, f"{key}.image"
    if image.mode != "anyres":
        has, most = {"square": ("has one tile", 1), "checkpoint": ("has the checkpoint's grid", 0)}[image.mode]
        problem, other = f"mode {image.mode} {has} and would ignore it", f"or {where}.mode=anyres"
        if image.grid:
            yield Fault(f"{where}.grid", problem, f"set {where}.grid=[] {other}")
        if image.max_tiles != most:
            yield Fault(f"{where}.max_tiles", problem, f"set {where}.max_tiles={most} {other}")
        return
    if image.max_tiles < 1:
        yield Fault(f"{where}.max_tiles", f"is {image.max_tiles}", f"set {where}.max_tiles >= 1, as 9")
    if not image.grid:
        yield Fault(
            f"{where}.grid", "mode anyres has no canvas to choose", f"set {where}.grid=[[1,2],[2,1],[2,2]] or more"
        )
    if any(len(canvas) != 2 or min(canvas) < 1 for canvas in image.grid):
        yield Fault(
            f"{where}.grid", f"{image.grid} holds no pairs of tiles", "each entry is [rows, columns], both >= 1"
        )
    elif len({tuple(canvas) for canvas in image.grid}) < len(image.grid):
        yield Fault(f"{where}.grid", "holds a canvas twice", "list each [rows, columns] once")


def plain_template_has_no_rules(key: str, stage: StageConfig) -> Iterator[Fault]:
    if stage.template != "plain":
        return
    for name, default in (("label_rule", "clean"), ("tag_policy", "front")):
        if (value := getattr(stage, name)) != default:
            problem = f"template plain would ignore {value}: it is one image and its caption, all of it supervised"
            yield Fault(f"{key}.{name}", problem, f"set {key}.{name}={default} or {key}.template=qwen")


def template_has_one_label_rule(key: str, stage: StageConfig) -> Iterator[Fault]:
    ends = {"vicuna": "</s>", "checkpoint": "end token"}
    if stage.template in ends and stage.label_rule != "clean":
        learned = f"it learns the answers and their {ends[stage.template]}"
        problem = f"template {stage.template} would ignore {stage.label_rule}: {learned}"
        yield Fault(f"{key}.label_rule", problem, f"set {key}.label_rule=clean or {key}.template=qwen")


STAGE_RULES: tuple[StageRule, ...] = (
    something_trains,
    stage_has_an_end,
    offload_fits_zero_level,
    step_is_counted_in_its_unit,
    grid_fits_mode,
    plain_template_has_no_rules,
    template_has_one_label_rule,
    *adapter.STAGE_RULES,
)
