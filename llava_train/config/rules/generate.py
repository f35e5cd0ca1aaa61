"""Rules of `generate`: one way to ask, nothing that would be ignored, sampling options within their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from llava_train.config.rules.bounds import Bound, bounded
from llava_train.config.schema import EvaluateConfig, GenerateConfig
from llava_train.config.typed import shown
from llava_train.records.file_formats import JSON_SUFFIXES
from llava_train.shared.errors import ConfigError, Fault
from llava_train.start_folder.files import json_fault, read_header
from llava_train.start_folder.find import ADAPTER_CONFIG, ADAPTER_WEIGHTS

WAYS = "'prompt=What is shown?', or file=PROMPTS.jsonl out=ANSWERS.jsonl, or chat=true"
OF_FILE = ("root", "out", "batch_size", "on_error")
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "num_beams", "min_new_tokens")
SAMPLED = ("temperature", "top_p", "top_k")  # without effect where the likeliest token is taken
BOUNDS: tuple[Bound, ...] = (
    ("max_new_tokens", ">=", 1),
    ("min_new_tokens", ">=", 0),
    ("batch_size", ">=", 1),
    ("seed", ">=", 0),
    ("temperature", ">", 0),
    ("top_p", ">", 0),
    ("top_p", "<=", 1),
    ("top_k", ">=", 0),
    ("repetition_penalty", ">", 0),
    ("num_beams", ">=", 1),
)
_REMEDIES = {"temperature": "; do_sample=false takes the likeliest token", "top_k": "; 0 = all tokens"}


def has_a_start(config: GenerateConfig | EvaluateConfig) -> Iterator[Fault]:
    if not config.model.init:
        yield Fault("model.init", "is empty", "set model.init=DIR_OR_HUB_NAME")


def asks_in_one_way(config: GenerateConfig) -> Iterator[Fault]:
    asked = {"prompt": config.prompt.strip(), "file": config.file, "chat": config.chat}
    ways = [name for name, value in asked.items() if value]
    if not ways:
        yield Fault("prompt", "is empty", f"write {WAYS}")
    for name in ways[1:]:
        yield Fault(name, f"is set, and so is {ways[0]}", f"one of {WAYS}")


def names_videos_once(config: GenerateConfig) -> Iterator[Fault]:
    if config.video and config.videos:
        yield Fault("video", "is set, and so is videos", "use videos=[...] alone for several")


def file_and_its_settings_go_together(config: GenerateConfig) -> Iterator[Fault]:
    if not config.file:
        defaults = {spec.name: spec.default for spec in fields(GenerateConfig)}
        for name in OF_FILE:
            if getattr(config, name) != defaults[name]:
                yield Fault(name, "is for a file of prompts, and there is none", f"leave {name} out, or set file=...")
        return
    if Path(config.file).suffix not in JSON_SUFFIXES or not Path(config.file).is_file():
        problem = f"{config.file} is no file that ends in {' or '.join(JSON_SUFFIXES)}"
        yield Fault("file", problem, "name one that holds a prompt per record")
    if Path(config.out).suffix != ".jsonl":
        yield Fault("out", f"{shown(config.out)} is no .jsonl file", "set out=ANSWERS.jsonl")
    for name in ("images", "videos", "video"):
        if getattr(config, name):
            yield Fault(name, "would be ignored: the media of a file's prompts stand in it", f"leave {name} out")


def adapter_is_a_folder(config: GenerateConfig | EvaluateConfig) -> Iterator[Fault]:
    if not config.adapter:
        return
    settings, weights = (Path(config.adapter, name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    if not settings.is_file():
        problem = f"no {ADAPTER_CONFIG} in {config.adapter}"
        yield Fault("adapter", problem, "name a folder as PEFT writes it, such as a run's STAGE/adapter")
    elif fault := json_fault("adapter", settings):
        yield fault
    elif weights.is_file():
        try:
            read_header("adapter", weights)
        except ConfigError as error:
            yield from error.faults


def options_are_in_range(config: GenerateConfig) -> Iterator[Fault]:
    for bound in BOUNDS:
        yield from bounded("", config, bound, _REMEDIES.get(bound[0], ""))


def answers_have_room(config: GenerateConfig) -> Iterator[Fault]:
    if config.min_new_tokens != "checkpoint" and config.min_new_tokens > config.max_new_tokens >= 1:
        problem = f"{config.min_new_tokens} is more than max_new_tokens, {config.max_new_tokens}"
        yield Fault("min_new_tokens", problem, "set max_new_tokens to at least as many")


def sampling_is_on_where_it_is_tuned(config: GenerateConfig) -> Iterator[Fault]:
    if config.do_sample is not True:
        for name in SAMPLED:
            if getattr(config, name) != "checkpoint":
                yield Fault(name, "is for sampled answers", f"set do_sample=true, or leave {name} out")


def chat_has_one_beam(config: GenerateConfig) -> Iterator[Fault]:
    if config.chat and config.num_beams not in ("checkpoint", 1):
        yield Fault("num_beams", "a chat shows tokens as they come, beams come at the end", "leave num_beams out")


GENERATE_RULES: tuple[Callable[[GenerateConfig], Iterator[Fault]], ...] = (
    has_a_start,
    asks_in_one_way,
    names_videos_once,
    file_and_its_settings_go_together,
    adapter_is_a_folder,
    options_are_in_range,
    answers_have_room,
    sampling_is_on_where_it_is_tuned,
    chat_has_one_beam,
)
