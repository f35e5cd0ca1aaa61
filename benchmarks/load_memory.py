"""Host memory that a rank takes to load a start, against the size of the model: read whole, and as the trainer does.

usage: python benchmarks/load_memory.py FOLDER [LAYERS]

Writes a model with random values and that many text layers of 0.10 GB (bf16) each, starts a stage that trains its
projector on 1 and 2 ranks at ZeRO 2 and 3, prints a table, and removes what it wrote. Needs the model in disk space.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

RANKS, LEVELS, WAYS = (1, 2), (2, 3), ("whole", "as trained")
VOCABULARY = 32_000
DATA = SimpleNamespace(steps_per_epoch=1, num_samples_by_source={}, refused=[], held_out=None)


def make_model(folder: Path, layers: int) -> int:
    """Returns its bytes, in bf16."""
    from make_bench import random_weights

    from llava_train.config.schema import VideoConfig
    from llava_train.model.hf_folder.folder import write_support
    from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
    from llava_train.model.hf_folder.weights import expected_specs, write_weights
    from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config

    tokenizer = byte_tokenizer()
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    text = {"vocab_size": VOCABULARY, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": layers}
    config = tiny_config(tokenizer, tied=False, text=text | heads)
    specs = expected_specs(config, torch.bfloat16)
    folder.mkdir(parents=True)
    write_support(
        folder,
        config,
        tokenizer,
        Preparation(checkpoint_geometry(config), "qwen", "front", VideoConfig(1.0, 4)),
        torch.bfloat16,
    )
    write_weights(folder, specs, random_weights(specs))
    return sum(spec.num_bytes for spec in specs.values())


def start_stage(model: str, run_dir: str, level: str, way: str) -> None:
    """What a rank does before its first step; rank 0 prints each one's peak, and what it holds then, in bytes."""
    from llava_train.config.load import load
    from llava_train.model.loading.strict_load import load_strictly
    from llava_train.ranks.process_group import start_ranks
    from llava_train.train import build
    from llava_train.train.run.stages import pending_stages

    if way == "whole":
        build.load_unread = load_strictly
    words = ["+recipe=tiny", f"model.init={model}", f"run.dir={run_dir}", "~stages.onevision"]
    words += [f"stages.projector.zero.level={level}", "stages.projector.precision=bf16"]
    with start_ranks() as ranks:
        [stage] = pending_stages(config := load(words), ranks)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = resident()
        loaded = build.build_model(config, stage, ranks)
        trainer = build.build_trainer(config, stage, loaded, DATA, ranks, None)  # type: ignore[arg-type]
        figures = ranks.gather([resident("VmHWM") - before, resident("RssAnon")])
        del trainer
        if ranks.is_first:
            print("RESULT", json.dumps(figures), flush=True)


def resident(what: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what + ":"))


def main(folder: Path, layers: int) -> None:
    size = make_model(folder / "model", layers)
    print(f"model: {size / 1e9:.2f} GB in bf16; peak above what the process held before, GB by rank")
    try:
        for level in LEVELS:
            for num_ranks in RANKS:
                for way in WAYS:
                    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
                    words = [__file__, "start", str(folder / "model"), str(folder / "run"), str(level), way]
                    done = subprocess.run([sys.executable, "-m", *launcher, *words], capture_output=True, text=True)
                    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
                    if not found:
                        raise SystemExit(done.stdout + done.stderr)
                    peaks = [f"{peak / 1e9:.2f}" for peak, _ in json.loads(found[0].removeprefix("RESULT "))]
                    print(f"ZeRO {level}, {num_ranks} rank(s), {way:<10}: {'  '.join(peaks)}", flush=True)
                    shutil.rmtree(folder / "run", ignore_errors=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1] == "start":
        start_stage(*sys.argv[2:])
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12)
