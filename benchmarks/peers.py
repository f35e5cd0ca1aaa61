"""Training steps beside other trainers: the same model, the same samples, in turns.

    python benchmarks/peers.py [--case fp32] [--only ours supervised] [--rounds 6] [--steps 5] [--venvs DIR]
    python benchmarks/peers.py --install --venvs DIR

Every contender is a process that lives as long as the comparison; in a round each takes its steps while the others
wait, in an order that turns from round to round. On a GPU, whose memory holds one of them, each takes all of its rounds
before the next is started. A first round warms up and shows that all do the same work: as many
tokens, and the same losses. A figure is tokens a second without padding; ratios to ours are formed round by round, and
told as their median, least and most, by the clock and, as other programs disturb it less, by processor time. TRL and
ms-swift live in environments of their own below DIR, made by --install.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from make_bench import FOLDER
from make_bench import main as make_bench
from rich.console import Console
from rich.table import Table

from llava_train.config.load import load
from llava_train.data.index.make_index import index_folder
from llava_train.data.loading.stage_data import build_data
from llava_train.family.onevision.family import OneVision
from llava_train.model.start.read_model import model_dims, read_model

HERE = Path(__file__).resolve().parent
PEERS = {"trl": ["trl==1.16.0"], "ms-swift": ["ms-swift==4.6.0", "pillow"]}
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # of a loss, relative to ours


@dataclass(frozen=True)
class Case:
    """threads: of each process. samples: of a step. size, mix: of the model and its samples, as in make_bench.py."""

    precision: str = "fp32"
    threads: int = 1
    samples: int = 4
    size: str = "small"
    mix: bool = False
    device: str = "cpu"
    recompute: bool = False  # by the plain loops, in all layers
    num_steps: int = 20  # different ones, over and over
    made: int = 320  # samples that they are drawn from
    contenders: tuple[str, ...] = ("ours", "padded", "single", "supervised", "trl", "ms-swift", "limit")
    recipe: tuple[str, ...] = ()


LARGE_PACKS = ("stages.bench.pack.max_tokens=32768", "stages.bench.pack.max_tiles=160", "stages.bench.max_length=32768",
               "stages.bench.video.max_frames=32")  # fmt: skip
FROZEN = ("stages.bench.learning_rate.vision_tower=frozen", "stages.bench.learning_rate.projector=frozen")
GPU = Case(
    "bf16",
    threads=8,
    samples=32,
    num_steps=4,
    made=128,
    mix=True,
    device="cuda",
    recompute=True,
    contenders=("ours", "single", "supervised"),
    recipe=(*LARGE_PACKS, "stages.bench.gradient_checkpointing=auto", "model.compile=true"),
)
CASES = {
    "fp32": Case(),
    "bf16": Case("bf16"),
    "fp32_two_threads": Case(threads=2),
    "bf16_two_threads": Case("bf16", threads=2),
    "two_ranks": Case(samples=32, contenders=("ours", "ours, 2 ranks")),
    "two_ranks_bf16": Case("bf16", samples=32, contenders=("ours", "ours, 2 ranks")),
    "mix": Case(mix=True, samples=8, contenders=("ours", "single", "supervised"), recipe=LARGE_PACKS),
    "gpu_0_5b": replace(GPU, size="0_5b"),
    "gpu_7b_lora": replace(
        GPU,
        size="7b",
        contenders=("ours",),
        recipe=(*GPU.recipe, "+stages.bench.lora={language_model: {rank: 64, alpha: 128}}", *FROZEN),
    ),
}
LABELS = {
    "ours": "llava_train",
    "padded": "transformers, padded batch",
    "single": "transformers, batch 1",
    "supervised": "transformers, batch 1, supervised logits",
    "trl": "TRL SFTTrainer",
    "ms-swift": "ms-swift",
    "limit": "limit: products and attention alone",
}


@dataclass
class Contender:
    """One or more processes (the ranks) that run a script of contenders/."""

    name: str
    processes: list[subprocess.Popen[str]]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def take(self, steps: int) -> dict[str, Any]:
        """A turn. Raises RuntimeError where the contender has ended."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self.processes if process.stdout]
        if not all(answers):
            raise RuntimeError(f"{self.name} has ended")
        told = [json.loads(answer) for answer in answers]
        return told[0] | {name: sum(rank[name] for rank in told) for name in ("memory", "processor")}

    def end(self) -> None:
        for process in self.processes:
            assert process.stdin
            process.stdin.close()
            process.wait()


def recipe_words(case: Case, folder: Path, run_dir: str) -> list[str]:
    stage = {"precision": case.precision, "global_batch_size": case.samples}
    words = [f"stages.bench.{key}={value}" for key, value in stage.items()]
    own = ["--config-dir", str(HERE / "recipes"), "+recipe=bench", f"data.root={folder}", f"run.dir={run_dir}"]
    return [*own, *words, *case.recipe]


def write_steps(words: list[str], folder: Path, num_steps: int) -> None:
    """steps.pt: the samples of each step, as our data layer draws and encodes them."""
    config = load(words)
    stage, dims = config.stages["bench"], model_dims(config.model)
    geometry = OneVision().geometry(dims.tile_size, dims.patch_size, stage.image)
    _, tokenizer = read_model(config.model)
    what = (config.data, stage, "bench", tokenizer, geometry, dims, config.run.seed, 0, 1, index_folder(config))
    steps = []
    for item in build_data(*what).step_batches(0, num_steps):
        samples: list[dict[str, Any]] = []
        for batch in item.batches:
            visuals, tiles = iter(batch.visuals), iter(batch.pixel_values)
            inside = torch.bucketize(batch.visual_positions, batch.cu_seqlens, right=True) - 1
            for number, (start, stop) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
                sample: dict[str, Any] = {"images": [], "videos": [], "sizes": []}
                sample |= {name: getattr(batch, name)[start:stop].clone() for name in ("input_ids", "labels")}
                tokens = int((inside == number).sum())
                while tokens:
                    layout = next(visuals)
                    tokens -= layout.num_tokens
                    kind = "videos" if layout.kind == "video" else "images"
                    sample[kind].append(torch.stack([next(tiles) for _ in range(layout.num_tiles)]))
                    if kind == "images":
                        sample["sizes"].append([layout.height, layout.width])
                samples.append(sample)
        steps.append(samples)
    torch.save(steps, folder / "steps.pt")


def start(name: str, case: Case, words: list[str], folder: Path, venvs: Path | None) -> Contender | str:
    """The contender, or why it is not there."""
    told = {"folder": str(folder), "way": name, "recipe": words, "steps": case.num_steps}
    told |= {key: getattr(case, key) for key in ("precision", "device", "recompute")}
    script = {"trl": "trl_sft.py", "ms-swift": "swift_sft.py", "limit": "limit.py"}.get(name, "plain.py")
    script, python, ranks = ("ours.py" if name.startswith("ours") else script), sys.executable, 1
    if name in PEERS:
        if not venvs or not (venvs / name / "bin/python").exists():
            return "not installed: --install --venvs DIR"
        python = str(venvs / name / "bin/python")
    if name == "ours, 2 ranks":
        ranks = 2
    environ = os.environ | {"OMP_NUM_THREADS": str(case.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    environ |= {"TOKENIZERS_PARALLELISM": "false"} | ({"CUDA_VISIBLE_DEVICES": ""} if case.device == "cpu" else {})
    processes = []
    for rank in range(ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 10000)} if ranks > 1 else {}
        with (folder / f"{name}-{rank}.log").open("w") as log:
            command = [python, str(HERE / "contenders" / script), json.dumps(told)]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            processes.append(subprocess.Popen(command, env=environ | place | meeting, **pipes))
    return Contender(name, processes)


def same_work(contenders: list[Contender], precision: str) -> list[str]:
    """Where the first round of a contender has other tokens or losses than ours."""
    ours, wrong = contenders[0].rounds[0], []
    for other in contenders[1:]:
        if other.name == "limit":
            continue
        theirs = other.rounds[0]
        far = max(abs(a - b) / a for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        if theirs["tokens"] != ours["tokens"] or far > TOLERANCE[precision]:
            wrong.append(f"{other.name}: {theirs['tokens']} tokens for {ours['tokens']}, losses {far:.2g} off")
    return wrong


def compare(case: Case, folder: Path, venvs: Path | None, rounds: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as run_dir:
        words = recipe_words(case, folder, run_dir)
        write_steps(words, folder, case.num_steps)
        begin = partial(start, case=case, words=words, folder=folder, venvs=venvs)
        run = one_by_one if case.device == "cuda" else in_turns
        contenders, missing = run(case.contenders, begin, rounds, steps, folder)
    if not contenders or contenders[0].name != case.contenders[0]:
        raise SystemExit(f"nothing to compare with: {case.contenders[0]} is missing: {missing[case.contenders[0]]}")
    rows = {contender.name: summary(contender, contenders[0]) for contender in contenders}
    wrong = same_work(contenders, case.precision)
    return {"rows": rows, "missing": missing, "wrong": wrong, "case": vars(case) | {"rounds": rounds, "steps": steps}}


Begin = Callable[[str], Contender | str]
Taken = tuple[list[Contender], dict[str, str]]  # those that took their steps; why the others did not


def in_turns(names: Sequence[str], begin: Begin, rounds: int, steps: int, folder: Path) -> Taken:
    """All at once, round by round."""
    started = {name: begin(name) for name in names}
    missing = {name: why for name, why in started.items() if isinstance(why, str)}
    contenders = [contender for contender in started.values() if isinstance(contender, Contender)]
    for contender in list(contenders):  # warms up, each alone
        if why := taken(contender, 1, steps, folder):
            missing[contender.name] = why
            contenders.remove(contender)
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.rounds.append(contender.take(steps))
    for contender in contenders:
        contender.end()
    return contenders, missing


def one_by_one(names: Sequence[str], begin: Begin, rounds: int, steps: int, folder: Path) -> Taken:
    """One after the other, each with the card to itself."""
    contenders, missing = [], {}
    for name in names:
        contender = begin(name)
        why = contender if isinstance(contender, str) else taken(contender, 1 + rounds, steps, folder)
        if isinstance(contender, Contender):
            contender.end()
            contenders += [] if why else [contender]
        if why:
            missing[name] = why
    return contenders, missing


def taken(contender: Contender, rounds: int, steps: int, folder: Path) -> str:
    """Takes its rounds; why it could not, or nothing."""
    try:
        contender.rounds += [contender.take(steps) for _ in range(rounds)]
    except (RuntimeError, OSError) as error:
        return f"{error}: {folder / contender.name}-0.log"
    return ""


def summary(contender: Contender, ours: Contender) -> dict[str, Any]:
    row: dict[str, Any] = {"losses": contender.rounds[0]["losses"], "memory": contender.rounds[-1]["memory"]}
    for clock in ("seconds", "processor"):
        speeds, mine = ([r["tokens"] / r[clock] for r in c.rounds[1:]] for c in (contender, ours))
        ratios = sorted(a / b for a, b in zip(mine, speeds, strict=True))
        spread = (ratios[0], ratios[-1])
        row[clock] = {"tokens": statistics.median(speeds), "ratio": statistics.median(ratios), "spread": spread}
    return row


def show(name: str, found: dict[str, Any]) -> None:
    case = found["case"]
    title = f"{name}: {case['precision']}, {case['threads']} thread(s), steps of {case['samples']} samples"
    table = Table(title=title, title_justify="left")
    for column in ("", "tokens/s", "ours to it", "least, most", "by processor", "peak MB", "first losses"):
        table.add_column(column, justify="right" if column else "left")
    for contender, row in found["rows"].items():
        losses = " ".join(f"{loss:.4f}" for loss in row["losses"][:3])
        clock, memory = row["seconds"], f"{row['memory'] / 1e6:,.0f}"
        ratio, spread = f"{clock['ratio']:.3f}", "{:.3f}, {:.3f}".format(*clock["spread"])
        cells = (f"{clock['tokens']:,.0f}", ratio, spread, f"{row['processor']['ratio']:.3f}", memory, losses)
        table.add_row(LABELS.get(contender, contender), *cells)
    console = Console(width=120, highlight=False)
    console.print(table)
    for contender, why in found["missing"].items():
        console.print(f"{LABELS[contender]} is missing: {why}")
    for line in found["wrong"]:
        console.print(f"not the same work: {line}")


def install(venvs: Path) -> None:
    for name, packages in PEERS.items():
        venv.create(venvs / name, with_pip=True)
        pip = [str(venvs / name / "bin/pip"), "install", "--quiet"]
        subprocess.run([*pip, f"torch=={version('torch').split('+')[0]}"], check=True)
        own = [f"transformers=={version('transformers')}"] if name == "trl" else []  # ms-swift wants an older one
        subprocess.run([*pip, f"torch=={version('torch').split('+')[0]}", *packages, *own], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="all of a CPU by default")
    parser.add_argument("--only", nargs="+", choices=[*LABELS, "ours, 2 ranks"], help="of a case's contenders")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5, help="of a contender in a round")
    parser.add_argument("--venvs", type=Path, help="where the peers' environments are")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="that models and samples are made in, each once")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    parser.add_argument("--install", action="store_true", help="make the peers' environments, and end")
    options = parser.parse_args()
    if options.install:
        install(options.venvs)
        return
    results: dict[str, Any] = {}
    packages = {name: version(name) for name in ("torch", "transformers", "deepspeed")}
    results["machine"] = {"cpu": platform.processor() or platform.machine(), **packages}
    for name in options.case or [name for name, case in CASES.items() if case.device == "cpu"]:
        case = CASES[name]
        folder = options.folder / f"{case.size}{'_mix' if case.mix else ''}"
        make_bench(folder, case.size, case.mix, case.made)
        if options.only:
            case = replace(case, contenders=tuple(one for one in case.contenders if one in options.only))
        results[name] = compare(case, folder, options.venvs, options.rounds, options.steps)
        show(name, results[name])
        if options.out:
            options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
