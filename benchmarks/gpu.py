"""What this project does on the GPU of this machine: whether it is right, what it holds, how fast it is.

    make gpu PART=correct|memory|speed       # or: python benchmarks/gpu.py PART [--folder DIR] [--out FILE]

correct: the tests marked gpu. memory: what a few steps of a stage hold at the most, beside what `plan` expects. speed:
the 0.5B on the last stage's mixture, full tuning of 7B layers, adapters on the 7B, and the 0.5B beside a plain loop.
Models have the released sizes and random weights, packs 32K tokens. Each part takes at most eight minutes on an H100
and ends with a Markdown table for docs/performance.md. --case names some of a part's rows, --size small tries the
script on any machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from make_bench import FOLDER
from make_bench import main as make_bench
from peers import FROZEN, HERE, LARGE_PACKS

ROOT = HERE.parent
SAMPLES = 160  # made of each size
FULL_PACKS = (
    *LARGE_PACKS,
    "stages.bench.pack.unit=tokens",
    "stages.bench.pack.per_step=2",
    "stages.bench.precision=bf16",
    "stages.bench.gradient_checkpointing=auto",
    "data.num_workers=8",
)
ADAPTERS = ("+stages.bench.lora={language_model: {rank: 64, alpha: 128}}", *FROZEN)
ALL_AGAIN, NONE_AGAIN = (f"stages.bench.gradient_checkpointing={value}" for value in ("true", "false"))
COMPILED, EAGER = "model.compile=true", "model.compile=false"
HALF_PACKS = ("stages.bench.pack.max_tokens=16384", "stages.bench.pack.max_tiles=128")


@dataclass(frozen=True)
class Row:
    """A stage to bench. size: of its model, as in make_bench.py."""

    label: str
    size: str
    words: tuple[str, ...]
    steps: int = 8


def zero(level: int) -> str:
    return f"stages.bench.zero.level={level}"


SPEED = {
    "0_5b": Row("0.5B, all parts, ZeRO 2, compiled", "0_5b", (zero(2), COMPILED), 16),
    "0_5b_eager": Row("0.5B, all parts, ZeRO 2", "0_5b", (zero(2), EAGER), 16),
    "7b_layers": Row("4 layers of 7B, all parts, ZeRO 3", "7b_4_layers", (zero(3), EAGER, ALL_AGAIN)),
    "7b_layers_compiled": Row("4 layers of 7B, all parts, ZeRO 2, compiled", "7b_4_layers", (zero(2), COMPILED)),
    "7b_lora": Row("7B, LoRA, ZeRO 2, compiled", "7b", (zero(2), COMPILED, *ADAPTERS)),
}
MEMORY = {
    "0_5b_again": Row("0.5B, all again, ZeRO 2", "0_5b", (zero(2), EAGER, ALL_AGAIN), 2),
    "0_5b_none": Row("0.5B, none again, ZeRO 2, packs of 16K", "0_5b", (zero(2), EAGER, NONE_AGAIN, *HALF_PACKS), 2),
    "0_5b_bf16": Row("0.5B, all again, ZeRO 0", "0_5b", (zero(0), EAGER, ALL_AGAIN), 2),
    "0_5b_zero3": Row("0.5B, all again, ZeRO 3", "0_5b", (zero(3), EAGER, ALL_AGAIN), 2),
    "0_5b_offload": Row("0.5B, all again, ZeRO 2, optimizer on the host", "0_5b",
                        (zero(2), "stages.bench.zero.offload_optimizer=true", EAGER, ALL_AGAIN), 2),
    "7b_layers_again": Row("4 layers of 7B, all again, ZeRO 3", "7b_4_layers", (zero(3), EAGER, ALL_AGAIN), 2),
}  # fmt: skip


def correct() -> int:
    """The runner's exit code."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "tests/model", "tests/train"], cwd=ROOT
    ).returncode


def bench(row: Row, folder: Path) -> dict[str, Any]:
    """What `bench` prints as JSON. Raises RuntimeError, with its last words, where it fails."""
    with tempfile.TemporaryDirectory() as run_dir:
        own = ["--config-dir", str(HERE / "recipes"), "+recipe=bench", f"data.root={folder}", f"run.dir={run_dir}"]
        words = [*own, *FULL_PACKS, *row.words, f"bench.steps={row.steps}", "bench.warmup=2"]
        command = [sys.executable, "-m", "llava_train", "bench", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-12:]))
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[str, dict[str, Any] | str]) -> Iterator[str]:
    """Markdown."""
    yield "| stage | tokens/s | MFU, HFU | a step | waits for data | peak memory | planned | of it |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for label, found in rows.items():
        if isinstance(found, str):
            yield f"| {label} | {found.splitlines()[-1] if found else 'failed'} | | | | | | |"
            continue
        share = found["products"] / found["stated"] if found["stated"] else 1.0  # of the data sheet, where it is known
        peak, planned = found["peak_memory"] / 1e9, found["planned_memory"] / 1e9
        cells = [
            label,
            f"{found['tokens_per_second']:,.0f}",
            f"{found['mfu'] * share:.1%}, {found['hfu'] * share:.1%}",
            f"{found['seconds_per_step']:.2f} s",
            f"{found['data_wait']:.1%}",
            f"{peak:.1f} GB",
            f"{planned:.1f} GB",
            f"{peak / planned:.2f}",
        ]
        yield f"| {' | '.join(cells)} |"


def machine() -> str:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed"))
    return f"{card}, {packages}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("correct", "memory", "speed"))
    parser.add_argument(
        "--case", nargs="+", choices=[*SPEED, *MEMORY, "beside"], help="some rows; beside: a plain loop"
    )
    parser.add_argument("--size", choices=["small"], help="in place of the released sizes")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="that models and samples are made in, each once")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    if options.part == "correct":
        raise SystemExit(correct())
    rows: dict[str, dict[str, Any] | str] = {}
    for name, row in (SPEED if options.part == "speed" else MEMORY).items():
        if options.case and name not in options.case:
            continue
        size = options.size or row.size
        folder = make_bench(options.folder / f"{size}_gpu", size, mix=True, samples=SAMPLES)
        try:
            rows[row.label] = bench(row, folder)
        except RuntimeError as error:
            rows[row.label] = str(error)
            print(f"{row.label} failed:\n{error}", flush=True)
        print(*list(table(rows))[-1:], sep="\n", flush=True)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.part == "speed" and (not options.case or "beside" in options.case):
        words = ["--case", "gpu_0_5b", "--rounds", "2", "--steps", "2", "--folder", str(options.folder)]
        subprocess.run([sys.executable, str(HERE / "peers.py"), *words], check=False)
    print(f"\n{machine()}\n", *table(rows), sep="\n")


if __name__ == "__main__":
    main()
