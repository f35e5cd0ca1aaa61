"""Rules of a stage's adapters and of quantised weights below them; and how each part trains, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_type_hints

from llava_train.config.rules.bounds import Bound, bounded
from llava_train.config.schema import Config, LearningRates, LoraConfig, StageConfig
from llava_train.config.typed import unknown
from llava_train.shared.errors import Fault

PARTS = tuple(get_type_hints(LearningRates))
BOUNDS: tuple[Bound, ...] = (("rank", ">=", 1), ("alpha", ">", 0), ("dropout", ">=", 0), ("dropout", "<", 1))
INITS = ("default", "gaussian", "orthogonal")  # those of PEFT that leave the weights below as they are
_REFUSED_INITS = {
    "pissa": "changes the weights below the adapter, so that it would fit no released checkpoint",
    "olora": "changes the weights below the adapter, so that it would fit no released checkpoint",
    "corda": "changes the weights below the adapter, and needs a pass over data before it starts",
    "eva": "needs a pass over data before it starts, with its rank then differing by layer",
    "loftq": "changes the quantised weights below the adapter, so that it would fit no released checkpoint",
    "mica": "changes the weights below the adapter, so that it would fit no released checkpoint",
}
_SHARED = ("dropout", "rslora", "dora", "init")  # PEFT has one value of each for a whole adapter


def how_trained(stage: StageConfig, part: str) -> str:
    """`frozen`, `1e-05`, `0.0002 by LoRA 64`."""
    rate, lora = getattr(stage.learning_rate, part), stage.lora.get(part)
    if rate == "frozen":
        return "frozen"
    return f"{rate:g}" + (f" by {'DoRA' if lora.dora else 'LoRA'} {lora.rank}" if lora else "")


def adapters_are_sound(key: str, stage: StageConfig) -> Iterator[Fault]:
    for part, settings in stage.lora.items():
        where = f"{key}.lora.{part}"
        if part not in PARTS:
            yield unknown(where, PARTS, "is no part of the model")
            continue
        if getattr(stage.learning_rate, part) == "frozen":
            remedy = f"give the adapters a rate: {key}.learning_rate.{part}=1e-4; or remove them: ~{where}"
            yield Fault(where, f"{part} is frozen, and so would its adapters be", remedy)
        if settings.init == "orthogonal" and stage.load_in != "none":
            problem = (
                f"orthogonal takes the dtype of the weights below, and these are quantised by load_in={stage.load_in}"
            )
            yield Fault(f"{where}.init", problem, f"set {where}.init=default")
        yield from _numbers(where, settings)
        yield from _init(f"{where}.init", settings)


def _numbers(where: str, settings: LoraConfig) -> Iterator[Fault]:
    for bound in BOUNDS:
        yield from bounded(f"{where}.", settings, bound)
    if not settings.targets:
        yield Fault(f"{where}.targets", "names no layer", f"set {where}.targets=all, or a list such as [q_proj,v_proj]")


def _init(where: str, settings: LoraConfig) -> Iterator[Fault]:
    name = settings.init.partition("_niter")[0]
    if settings.init not in INITS:
        problem = f"{settings.init} {_REFUSED_INITS.get(name, 'is not known')}"
        yield Fault(where, problem, f"allowed: {' | '.join(INITS)}")
    elif settings.init == "orthogonal" and settings.rank % 2:
        yield Fault(
            where, f"orthogonal needs an even rank, and it is {settings.rank}", f"set an even rank, or {where}=default"
        )


def adapters_agree(key: str, stage: StageConfig) -> Iterator[Fault]:
    for name in _SHARED:
        values = {part: getattr(settings, name) for part, settings in stage.lora.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{part} {value}" for part, value in values.items())
            remedy = f"give all parts the same {name}"
            yield Fault(f"{key}.lora", f"{name} differs by part ({told}), and an adapter has one value of it", remedy)


def adapters_have_a_checkpoint_below(config: Config) -> Iterator[Fault]:
    name, stage = next(iter(config.stages.items()), ("", None))
    if stage and stage.lora and not config.model.init:
        remedy = "set model.init=DIR_OR_HUB_NAME, or train a stage without adapters before it"
        yield Fault(f"stages.{name}.lora", "an adapter belongs to a checkpoint, and model.init is empty", remedy)


def quantised_weights_do_not_train(key: str, stage: StageConfig) -> Iterator[Fault]:
    rate = stage.learning_rate.language_model
    if stage.load_in != "none" and rate != "frozen" and "language_model" not in stage.lora:
        problem = f"{stage.load_in} weights cannot train, and learning_rate.language_model is {rate}"
        adapters = f"train adapters on them: +{key}.lora.language_model={{rank:16,alpha:32}}"
        remedy = f"{adapters}; or set {key}.learning_rate.language_model=frozen or {key}.load_in=none"
        yield Fault(f"{key}.load_in", problem, remedy)


def eight_bits_are_not_sharded(key: str, stage: StageConfig) -> Iterator[Fault]:
    if stage.load_in == "8bit" and stage.zero.level == 3:
        problem = (
            "8bit, and zero.level is 3: bitsandbytes keeps every 8-bit weight whole on every rank beside its shard"
        )
        yield Fault(f"{key}.load_in", problem, f"set {key}.load_in=4bit or {key}.zero.level=2")


def quantised_weights_have_a_checkpoint(config: Config) -> Iterator[Fault]:
    name, stage = next(iter(config.stages.items()), ("", None))
    if stage and stage.load_in != "none" and not config.model.init:
        remedy = f"set model.init=DIR_OR_HUB_NAME, or stages.{name}.load_in=none"
        yield Fault(f"stages.{name}.load_in", "quantises one whole checkpoint, and model.init is empty", remedy)


RULES = (adapters_have_a_checkpoint_below, quantised_weights_have_a_checkpoint)
STAGE_RULES: tuple[Callable[[str, StageConfig], Iterator[Fault]], ...] = (
    adapters_are_sound,
    adapters_agree,
    quantised_weights_do_not_train,
    eight_bits_are_not_sharded,
)
