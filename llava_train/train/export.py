"""A Hugging Face folder from a run's own files: streamed, proved against them, whole or absent.

Enters: `STAGE/base/` and a step folder, of any number of ranks. Leaves: the folder, with what was proved of it in
`export.json`. No engine and no GPU; one tensor in memory at a time, but for the comparison of logits where it is done.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import LlavaOnevisionConfig

from llava_train.config.errors import RunError
from llava_train.config.load import load_dumped
from llava_train.model.card import Card
from llava_train.model.hf import (
    expected_specs,
    read_preparation,
    whole_folder,
    write_card,
    write_weights,
)
from llava_train.model.memory import peak_memory, restart_peak
from llava_train.model.prove import Check, prove
from llava_train.model.tensorfile import SlicedFiles, Spec
from llava_train.train import checkpoint
from llava_train.train.card import make_card
from llava_train.train.stages import all_stages

REPORT_FILE = "export.json"
CHUNK = 1 << 24  # elements read at a time from the fp32 slices


@dataclass(frozen=True)
class Weights:
    """The parameters of a step: those that train, fp32, and those that do not, as slices; given in one dtype."""

    trained: SlicedFiles
    frozen: SlicedFiles
    specs: dict[str, Spec]

    def read(self, name: str) -> torch.Tensor:
        source = self.trained if name in self.trained.shapes else self.frozen
        spec = self.specs[name]
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        flat = whole.view(-1)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            part.copy_(source.read(name, start, start + part.numel()))
        return whole


def open_weights(base: Path, step: Path, config: Any) -> Weights:
    """Reads headers alone. Raises RunError where the files do not hold exactly the parameters of the config."""
    try:
        trained = SlicedFiles(checkpoint.weight_files(step))
        frozen = SlicedFiles(checkpoint.frozen_files(base))
    except ValueError as error:
        raise RunError(f"{step} cannot be exported: {error}\n    -> take another step: step=N") from error
    specs = expected_specs(config, config.dtype)
    found = frozen.shapes | trained.shapes
    wrong = sorted(
        name for name in specs.keys() | found.keys() if name not in specs or specs[name].shape != found.get(name)
    )
    wrong += sorted(trained.shapes.keys() & frozen.shapes.keys())
    if wrong:
        told = f"{step} and {base} do not hold the parameters of {base}/config.json: {', '.join(wrong)}"
        raise RunError(f"{told}\n    -> put back the {base.name} folder that the run wrote")
    return Weights(trained, frozen, specs)


def export_checkpoint(stage_dir: Path, step: Path, out: Path) -> dict[str, Any]:
    """Writes `out` from the step folder, replacing an export that is there; one process calls it.

    Returns the report. Raises RunError, and leaves `out` as it was, where a check fails or the files do not fit.
    """
    restart_peak()
    before = peak_memory()
    base = stage_dir / checkpoint.BASE
    config: Any = LlavaOnevisionConfig.from_pretrained(base)
    weights = open_weights(base, step, config)
    with whole_folder(out) as folder:
        for path in sorted(base.iterdir()):
            if path.suffix != ".safetensors" and path != checkpoint.manifest_of(base):
                shutil.copyfile(path, folder / path.name)
        hashes = write_weights(folder, weights.specs, ((name, weights.read(name)) for name in weights.specs))
        write_card(folder, _run_card(stage_dir, step), read_preparation(str(base), config))
        written = peak_memory()
        checks = prove(folder, config, hashes, weights.read)
        report = {
            "stage": stage_dir.name,
            "checkpoint": step.name,
            "peak_host_bytes": {"before": before, "weights written": written, "checks done": peak_memory()},
            "versions": {package: version(package) for package in ("llava_train", "torch", "transformers")},
            "checks": [asdict(check) for check in checks],
        }
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def report_table(report: dict[str, Any]) -> Table:
    table = Table("check", "", "found", "seconds")
    for check in (Check(**entry) for entry in report["checks"]):
        done = "done" if check.done else "not done"
        table.add_row(check.name, done, check.told, f"{check.figures['seconds']:.1f}")
    peak = report["peak_host_bytes"]
    told = ", ".join(f"{size / 1e9:.2f} GB {when}" for when, size in peak.items())
    table.add_row("peak host memory", "", told, "")
    return table


def _run_card(stage_dir: Path, step: Path) -> Card:
    """From the run's own records: the settings and where the run was at this step."""
    config = load_dumped(stage_dir / "config.yaml")
    config = replace(config, run=replace(config.run, dir=str(stage_dir.parent)))
    [stage] = [stage for stage in all_stages(config) if stage.name == stage_dir.name]
    content = checkpoint.read_state(step)
    return make_card(config, stage, content["state"], content["meta"])
