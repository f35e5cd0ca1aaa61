"""A stage's folder as a run on some ranks leaves it, written plainly: parameters cut evenly, wherever that falls."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from llava_train.config.fingerprint import dump
from llava_train.config.load import load
from llava_train.config.schema import VideoConfig
from llava_train.model.files.tensor_files import Spec, Written, file_sha256, write_tensors
from llava_train.model.hf_folder.folder import write_support
from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
from llava_train.train.checkpoint.on_disk import manifest_text
from llava_train.train.checkpoint.state import TrainState

STAGE, STEP = "onevision", 7
STATE = asdict(TrainState(STEP, num_samples=28, num_tokens=900, num_supervised=90, loss=1.25, seconds=3.0))


def write_stage(
    run_dir, model, tokenizer, num_ranks=1, trains=("model.language_model", "lm_head"), dtype=torch.float32
):
    """`RUN/onevision` of the tiny recipe with one checkpoint, of step 7: the fp32 values of `model`."""
    stage_dir = run_dir / STAGE
    base, step = stage_dir / "base", stage_dir / f"step-{STEP:08d}"
    base.mkdir(parents=True)
    step.mkdir()
    (stage_dir / "config.yaml").write_text(dump(load(["+recipe=tiny", f"run.dir={run_dir}"])))
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    trained = {name: value for name, value in values.items() if name.startswith(trains)}
    frozen = {name: value.to(dtype) for name, value in values.items() if name not in trained}
    preparation = Preparation(checkpoint_geometry(model.config), "qwen", "front", VideoConfig(1.0, 4))
    write_support(base, model.config, tokenizer, preparation, dtype)
    support = {path.name: Written(path.stat().st_size, file_sha256(path)) for path in base.iterdir()}
    files = write_slices(base, "frozen", frozen, num_ranks)
    (base / "manifest.json").write_text(manifest_text({}, support | files))
    meta = {"data": {"captions": 28}}
    files = write_slices(step, "weights", trained, num_ranks)
    (step / "state.json").write_text(manifest_text({"state": STATE, "meta": meta}, files))
    return stage_dir


def write_slices(folder: Path, kind: str, tensors: dict[str, torch.Tensor], num_ranks: int) -> dict[str, Written]:
    """The tensors end to end, cut into one equal part per rank."""
    total = sum(tensor.numel() for tensor in tensors.values())
    per_rank = -(-total // num_ranks)
    files = {}
    for rank in range(num_ranks):
        parts, slices, offset = {}, {}, 0
        for name, tensor in tensors.items():
            start = min(max(rank * per_rank - offset, 0), tensor.numel())
            stop = min(max((rank + 1) * per_rank - offset, 0), tensor.numel())
            offset += tensor.numel()
            if start < stop:
                parts[name] = tensor.reshape(-1)[start:stop]
                slices[name] = {"start": start, "shape": list(tensor.shape)}
        name = f"{kind}-{rank:05d}-of-{num_ranks:05d}.safetensors"
        specs = {name: Spec(part.dtype, tuple(part.shape)) for name, part in parts.items()}
        files[name] = write_tensors(folder / name, specs, parts.items(), {"slices": json.dumps(slices)})
    return files
