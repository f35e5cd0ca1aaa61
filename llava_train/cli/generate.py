"""`generate`: a checkpoint's answer to one prompt, its answers to a file of prompts, or a chat with it."""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from llava_train.cli.chat import Chat, chat
from llava_train.config.load import load_verb
from llava_train.config.rules.generate import SAMPLING
from llava_train.config.schema import GenerateConfig
from llava_train.data.samples.prompts import prompt_sample, read_prompts
from llava_train.evaluate.answer_file import AnswerFile
from llava_train.evaluate.answerer import DECODE_TIMEOUT, MAX_PIXELS, Answerer
from llava_train.model.start.start_faults import open_start
from llava_train.start_folder.find import stamps


def run(argv: list[str]) -> int:
    """Prints the answer, writes the answers, or talks. Raises ConfigError, DataError, RunError."""
    config = load_verb(GenerateConfig, argv)
    open_start("model.init", config.model.init)  # an unsound one leaves no file of answers behind
    try:
        _run(config)
    except KeyboardInterrupt:
        remedy = ": the same command answers the rest" if config.file else ""
        print(f"stopped{remedy}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _run(config: GenerateConfig) -> None:
    videos = [*config.videos, *([config.video] if config.video else [])]
    if config.file:
        _answer_file(config)
    elif config.chat:
        answerer = _answerer(config)
        options = _options(config, answerer) | {"num_beams": 1}
        chat(Chat(lambda sample, tell: answerer.stream(sample, tell, **options), config.system, config.images, videos))
    else:
        answerer = _answerer(config)
        sample = prompt_sample(config.prompt, config.images, videos, config.system)
        print(*answerer.answers([sample], 1, **_options(config, answerer)))


def _answerer(config: GenerateConfig) -> Answerer:
    return Answerer(
        config.model.init,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        MAX_PIXELS,
        DECODE_TIMEOUT,
        config.dtype,
        config.adapter,
        config.load_in,
        config.device_map,
    )


def _options(config: GenerateConfig, answerer: Answerer) -> dict[str, Any]:
    """What was set, and of the rest what the checkpoint sets."""
    return {"max_new_tokens": config.max_new_tokens, "seed": config.seed, **answerer.own_sampling, **_set(config)}


def _set(config: GenerateConfig) -> dict[str, Any]:
    return {name: value for name in SAMPLING if (value := getattr(config, name)) != "checkpoint"}


def _answer_file(config: GenerateConfig) -> None:
    """The model is loaded where an answer is missing."""
    path = Path(config.file)
    prompts = read_prompts(path, Path(config.root or path.parent), config.system)
    with AnswerFile(Path(config.out), answer_settings(config)) as file:
        missing = file.missing(prompts)
        if not missing:
            print(f"0 answered, {len(prompts)} were there: {config.out}")
            return
        answerer = _answerer(config)
        options = _options(config, answerer)
        print(
            file.answer(
                missing, lambda s: answerer.outcomes(s, config.batch_size, **options), config.on_error == "skip"
            )
        )


def answer_settings(config: GenerateConfig) -> dict[str, Any]:
    """What answers depend on. Not the size of a batch, though sampled answers share its random numbers: who runs out of
    memory goes on with a smaller one."""
    named = {key: getattr(config, key) for key in ("system", "load_in", "dtype", "seed", "max_new_tokens", *SAMPLING)}
    for key, folder in (("model.init", config.model.init), ("adapter", config.adapter)):
        is_local = bool(folder) and Path(folder).is_dir()
        named[key] = str(Path(folder).resolve()) if is_local else folder
        named[f"weights of {key}"] = _weights(folder) if is_local else ""
    return named


def _weights(folder: str) -> str:
    """Changes with the size or the time of a file of weights."""
    return hashlib.sha256(repr([tuple(stamp) for stamp in stamps(folder)]).encode()).hexdigest()[:12]
