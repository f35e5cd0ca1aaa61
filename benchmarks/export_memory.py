"""Host memory that an export takes, against the size of the model: a made-up run of three ranks, streamed to a folder.

usage: python benchmarks/export_memory.py FOLDER [LAYERS]

Writes the checkpoint of a model with random values and that many text layers of 0.10 GB (bf16) each, exports it by the
command in a process of its own, prints the report, and removes what it wrote. Needs four times the model in disk space.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from llava_train.config.fingerprint import dump
from llava_train.config.load import load
from llava_train.config.schema import VideoConfig
from llava_train.model.files.tensor_files import Spec, Written, file_sha256, write_tensors
from llava_train.model.hf_folder.folder import write_support
from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
from llava_train.model.hf_folder.weights import expected_specs
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config
from llava_train.train.checkpoint.on_disk import manifest_text, step_folder
from llava_train.train.checkpoint.state import TrainState

RANKS, VOCABULARY, STEP = 3, 152_064, 1


def make_run(run_dir: Path, layers: int) -> int:
    """A run whose text model alone trains. Returns the bytes of the model in bf16."""
    stage_dir = run_dir / "onevision"
    base, step = stage_dir / "base", step_folder(stage_dir, STEP)
    base.mkdir(parents=True)
    step.mkdir()
    (stage_dir / "config.yaml").write_text(dump(load(["+recipe=tiny", f"run.dir={run_dir}"])))
    tokenizer = byte_tokenizer()
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    text = {"vocab_size": VOCABULARY, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": layers}
    config = tiny_config(tokenizer, tied=False, text=text | heads)
    specs = expected_specs(config, torch.bfloat16)
    trained = {name: Spec(torch.float32, spec.shape) for name, spec in specs.items() if "language" in name}
    trained["lm_head.weight"] = Spec(torch.float32, specs["lm_head.weight"].shape)
    frozen = {name: spec for name, spec in specs.items() if name not in trained}
    notes = Preparation(checkpoint_geometry(config), "qwen", "front", VideoConfig(1.0, 4))
    write_support(base, config, tokenizer, notes, torch.bfloat16)
    support = {path.name: Written(path.stat().st_size, file_sha256(path)) for path in base.iterdir()}
    (base / "manifest.json").write_text(manifest_text({}, support | write_ranks(base, "frozen", frozen)))
    content = {"state": asdict(TrainState(STEP)), "meta": {"data": {"none": 1}}}
    (step / "state.json").write_text(manifest_text(content, write_ranks(step, "weights", trained)))
    return sum(spec.num_bytes for spec in specs.values())


def write_ranks(folder: Path, kind: str, specs: dict[str, Spec]) -> dict[str, Written]:
    """The tensors end to end, an equal part for each rank."""
    per_rank = -(-sum(torch.Size(spec.shape).numel() for spec in specs.values()) // RANKS)
    files = {}
    for rank in range(RANKS):
        parts: dict[str, Spec] = {}
        slices = {}
        offset = 0
        for name, spec in specs.items():
            count = torch.Size(spec.shape).numel()
            start, stop = (min(max(r * per_rank - offset, 0), count) for r in (rank, rank + 1))
            offset += count
            if start < stop:
                parts[name] = Spec(spec.dtype, (stop - start,))
                slices[name] = {"start": start, "shape": list(spec.shape)}
        name = f"{kind}-{rank:05d}-of-{RANKS:05d}.safetensors"
        files[name] = write_tensors(folder / name, parts, random_values(parts), {"slices": json.dumps(slices)})
    return files


def random_values(parts: dict[str, Spec]) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for name, spec in parts.items():
        yield name, (torch.rand(spec.shape, generator=generator) / 32).to(spec.dtype)


def main(folder: str, layers: str = "24") -> None:
    root = Path(folder) / "export_memory"
    try:
        size = make_run(root / "run", int(layers))
        began = time.monotonic()
        words = [f"run.dir={root / 'run'}", f"out={root / 'out'}"]
        subprocess.run([sys.executable, "-m", "llava_train", "export", *words], check=True)
        seconds = time.monotonic() - began
        report = json.loads((root / "out/export.json").read_text())
        print(f"model {size / 1e9:.2f} GB, largest tensor {VOCABULARY * 2048 * 2 / 1e9:.2f} GB, {seconds:.0f} s")
        for check in report["checks"]:
            print(f"peak host memory after {check['name']}: {check['figures']['peak_host_bytes'] / 1e9:.2f} GB")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
