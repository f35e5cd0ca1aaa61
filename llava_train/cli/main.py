"""Picks the verb; without one, trains. What a user can cause ends in a message and exit code 2, without a traceback."""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import sys

from llava_train.config.shipped_files import headline, shipped_models, shipped_recipes
from llava_train.config.typed import nearest
from llava_train.ranks.launcher import take_local_rank
from llava_train.ranks.signals import EXIT_CODE, LOST, Stopped
from llava_train.shared.errors import ConfigError, DataError, LostRankError, RunError

VERBS = {
    "train": "train the stages of a recipe (the verb may be left out)",
    "check": "find every fault of a run, without a GPU and without loading weights",
    "plan": "say what the stages will cost, without a GPU: plan.world_size=N plan.gpu=NAME [plan.simulate=N]",
    "bench": "measure the speed of a stage's step here: bench.steps=N bench.warmup=N [bench.stage=NAME]",
    "preview": "show samples as the model sees them: preview.format=text|jsonl|html preview.count=N",
    "generate": "answer a prompt about images and videos, a file of them, or talk: chat=true",
    "evaluate": "score answers to held-out questions, as figures and a page: model.init=DIR data.file=FILE",
    "compare": "show evaluations of the same questions side by side: before=DIR after=[DIR,...]",
    "export": "turn a run's checkpoint into a Hugging Face folder: run.dir=DIR [stage=NAME] [step=N] out=DIR",
    "status": "say how far a run is, how fast, what stopped it and what it saved last: run.dir=DIR",
    "job": "begin or end a SLURM job's segment of a run, for slurm/train.sbatch",
    "convert": "turn a checkpoint of the original trainer into a Hugging Face folder: original=DIR out=DIR",
}
_REFUSALS = {errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT}  # of a file system, to whoever asks
_ELSEWHERE = "make room, or give the right to write there, or choose another folder: run.dir=DIR or out=DIR"
_HELP = """\
usage: python -m llava_train [VERB] +recipe=NAME [KEY=VALUE ...]

verbs
{verbs}

recipes
{recipes}

examples
  python -m llava_train +recipe=tiny
  python -m llava_train check +recipe=ov_stage model={size}
  torchrun --nproc_per_node 8 -m llava_train +recipe=ov_stage data.root=DIR
  python -m llava_train generate model.init=DIR 'prompt=What is shown?' 'images=[a.png,b.png]'
  python -m llava_train generate model.init=DIR file=PROMPTS.jsonl out=ANSWERS.jsonl adapter=DIR
  python -m llava_train generate model.init=DIR chat=true do_sample=true temperature=0.7

your own data, with any verb that reads a recipe
  python -m llava_train +recipe=ov_stage model.init=DIR_OR_HUB_NAME data.file=FILE data.root=DIR
  FILE: a .csv with columns image, question, answer; LLaVA's .json or .jsonl; or a folder of pictures: docs/data.md

your own recipe: my_recipes/mine.yaml with `defaults: [ov_stage, _self_]` and what differs
  python -m llava_train --config-dir my_recipes +recipe=mine

settings: KEY=VALUE sets, +KEY=VALUE adds an entry to a mapping by name, ~KEY removes one; texts are taken as written.
exit codes: 0 done; 2 for what you can mend; 75 stopped by SIGTERM, SIGUSR1 or SIGINT with everything saved: the same
command continues; 69 another rank is gone, 70 no step in time: it continues from the last whole checkpoint; 128+N ended
at once by a second signal N.
sizes: model={sizes}. What each key means: llava_train/config/schema.py."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command line. Returns its exit code, 2 for what the user can mend."""
    try:
        code = _report_faults(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        unread = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _is_unread(stream.fileno())]
        if not unread:
            raise
        for descriptor in unread:  # Python flushes both at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        return 128 + signal.SIGPIPE


def _is_unread(descriptor: int) -> bool:
    """Whether it is a pipe whose reader has gone, as `| head` does when it has seen enough."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def _report_faults(argv: list[str] | None) -> int:
    """Runs the command; what a user can mend is printed as a message. Returns the exit code."""
    try:
        return _run(take_local_rank(sys.argv[1:] if argv is None else argv, os.environ))
    except ConfigError as error:
        _print_once(error)
    except Stopped as stopped:
        _print_once(f"{stopped}: the same command continues")
        return EXIT_CODE
    except LostRankError as error:
        print(error, file=sys.stderr)
        return LOST
    except (DataError, RunError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(f"a setting names a path with a longer name than a file has: {error.filename}", file=sys.stderr)
            print("    -> give the path of a file or folder alone", file=sys.stderr)
            return 2
        if error.errno not in _REFUSALS:
            raise
        print(f"{error}\n    -> {_ELSEWHERE}", file=sys.stderr)
    return 2


def _run(words: list[str]) -> int:
    if not words or {"--help", "-h"} & set(words):
        print(help_text())
        return 0 if words else 2
    verb, rest = pick_verb(words)
    if verb not in VERBS:
        close = nearest(verb, VERBS)
        remedy = f"did you mean {close}?" if close else f"known: {', '.join(VERBS)}"
        print(f"no verb {verb}\n    -> {remedy}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"llava_train.cli.{verb}").run(rest))


def _print_once(told: object) -> None:
    """For what is the same on every rank."""
    if os.environ.get("RANK", "0") == "0":
        print(told, file=sys.stderr)


def pick_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb and the words after it; `train` where the first word is a setting or an option."""
    first = words[0]
    if "=" in first or first.startswith(("-", "+", "~")):
        return "train", words
    return first, words[1:]


def help_text() -> str:
    recipes = {name: headline(path) for name, path in shipped_recipes().items()}
    sizes = list(shipped_models())
    return _HELP.format(verbs=_table(VERBS), recipes=_table(recipes), size=sizes[0], sizes=" | ".join(sizes))


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
