"""A Hugging Face folder from a run's own files: streamed, proved against them, whole or absent.

Enters: `STAGE/base/` and a step folder, of any number of ranks. Leaves: the folder, with what was proved of it in
`export.json`. No engine and no GPU; one tensor in memory at a time, but for the comparison of logits where it is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig

from llava_train.config.load import load_dumped
from llava_train.config.schema import Config, LoraConfig
from llava_train.family.registry import family_of
from llava_train.model.files.model_class import model_class
from llava_train.model.files.start_weights import StartWeights
from llava_train.model.files.tensor_files import SlicedFiles, Spec
from llava_train.model.hf_folder.card import Card
from llava_train.model.hf_folder.check_export import Check, prove
from llava_train.model.hf_folder.folder import write_card
from llava_train.model.hf_folder.preparation import read_preparation
from llava_train.model.hf_folder.weights import expected_specs, write_weights
from llava_train.model.prepare.adapter import adapter_names, adapter_of, peft_config, saved_modules, write_adapter
from llava_train.model.prepare.trained_parts import is_adapter
from llava_train.shared.errors import RunError
from llava_train.shared.host_memory import peak_memory, restart_peak
from llava_train.shared.json_files import to_json
from llava_train.shared.whole_files import whole_folder
from llava_train.train.checkpoint import on_disk
from llava_train.train.export.card import make_card
from llava_train.train.run.stages import Stage, all_stages

REPORT_FILE = "export.json"
CHUNK = 1 << 24  # elements read at a time from the fp32 slices


@dataclass(frozen=True)
class StepWeights:
    """The parameters of a step in one dtype: those that train, fp32 slices, and those that do not, as slices or in the
    stage's start. Adapters are merged in fp32 into the weights below them."""

    trained: SlicedFiles
    frozen: SlicedFiles | StartWeights
    specs: dict[str, Spec]
    lora: Mapping[str, LoraConfig]

    def read(self, name: str) -> torch.Tensor:
        spec = self.specs[name]
        if adapter := adapter_of(name, self.lora, self.trained.shapes, self.read_trained):
            return adapter.merged(self._below(name)).to(spec.dtype)
        return self._below(name).to(spec.dtype)

    def read_trained(self, name: str) -> torch.Tensor:
        """fp32, under the name that it had in training."""
        return self.trained.read(name).view(self.trained.shapes[name])

    def _below(self, name: str) -> torch.Tensor:
        """Without its adapter."""
        if name not in self.trained.shapes and isinstance(self.frozen, StartWeights):
            return self.frozen.read(name)
        source: Any = self.trained if name in self.trained.shapes else self.frozen
        spec = self.specs[name]
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        flat = whole.view(-1)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            part.copy_(source.read(name, start, start + part.numel()))
        return whole


def open_step_weights(base: Path, step: Path, config: Any, lora: Mapping[str, LoraConfig]) -> StepWeights:
    """Reads headers alone. Raises RunError where the files do not hold exactly the parameters of the config."""
    frozen: SlicedFiles | StartWeights
    try:
        trained = SlicedFiles(on_disk.step_weight_files(step))
        start = on_disk.start_of(base)
        if start:
            frozen = StartWeights([start[0] / name for name in start[1]])
        else:
            frozen = SlicedFiles(on_disk.frozen_files(base))
    except ValueError as error:
        raise RunError(f"{step} cannot be exported: {error}\n    -> take another step: step=N") from error
    specs = expected_specs(config, config.dtype)
    whole = {name: shape for name, shape in trained.shapes.items() if not is_adapter(name)}
    found = {name: shape for name, shape in frozen.shapes.items() if not (start and name not in specs)} | whole
    wrong = sorted(
        name for name in specs.keys() | found.keys() if name not in specs or specs[name].shape != found.get(name)
    )
    wrong += [] if start else sorted(whole.keys() & frozen.shapes.keys())
    if wrong:
        told = f"{step} and {base} do not hold the parameters of {base}/config.json: {', '.join(wrong)}"
        raise RunError(f"{told}\n    -> put back the {base.name} folder that the run wrote")
    return StepWeights(trained, frozen, specs, lora)


def export_checkpoint(stage_dir: Path, step: Path, out: Path) -> dict[str, Any]:
    """Writes `out` from the step folder, replacing an export that is there; one process calls it.

    Returns the report. Raises RunError, and leaves `out` as it was, where a check fails or the files do not fit.
    """
    restart_peak()
    before = peak_memory()
    base = stage_dir / on_disk.BASE
    config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
    weights = open_step_weights(base, step, config, _stage_of(stage_dir).settings.lora)
    with whole_folder(out) as folder:
        _copy_support(base, folder)
        hashes = write_weights(folder, weights.specs, ((name, weights.read(name)) for name in weights.specs))
        write_card(folder, _run_card(stage_dir, step), read_preparation(str(base), config), family_of(config))
        written = peak_memory()
        checks = prove(folder, config, hashes, weights.read)
        report = {
            "stage": stage_dir.name,
            "checkpoint": step.name,
            "peak_host_bytes": {"before": before, "weights written": written, "checks done": peak_memory()},
            "versions": {package: version(package) for package in ("llava_train", "torch", "transformers")},
            "checks": [asdict(check) for check in checks],
        }
        (folder / REPORT_FILE).write_text(to_json(report, indent=1) + "\n", encoding="utf-8")
    return report


def export_adapter(stage_dir: Path, step: Path, out: Path) -> dict[str, Any]:
    """Writes the adapter of the step folder to `out` as PEFT reads it, with the processor that it was trained with.

    Returns the report. Raises RunError where the stage trained more than an adapter can hold.
    """
    stage, base = _stage_of(stage_dir), stage_dir / on_disk.BASE
    saved = saved_modules(stage.settings)
    if saved is None:
        told = f"{stage_dir} trains the whole language model, which no adapter can hold"
        raise RunError(f"{told}\n    -> export the whole model: merge=true")
    config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
    weights = open_step_weights(base, step, config, stage.settings.lora)
    with torch.device("meta"):
        plain = model_class(config)(config)
    made = peft_config(plain, stage.settings.lora, stage.start.init, saved)
    names = adapter_names(plain, made)
    if wrong := sorted({name for name in weights.trained.shapes if is_adapter(name)} - set(names)):
        raise RunError(f"{step} holds adapters of another recipe than {stage_dir}/config.yaml: {', '.join(wrong)}")
    with whole_folder(out) as folder:
        _copy_support(base, folder, without=("config.json",))
        tensors = {name: (weights.read_trained if is_adapter(name) else weights.read)(name) for name in names}
        write_adapter(folder, made, tensors)
        card, preparation = _run_card(stage_dir, step), read_preparation(str(base), config)
        write_card(folder, card, preparation, family_of(config), is_adapter=True)
    size = sum(tensor.numel() for tensor in tensors.values())
    return {"stage": stage_dir.name, "checkpoint": step.name, "tensors": len(names), "parameters": size}


def _copy_support(base: Path, folder: Path, without: Container[str] = ()) -> None:
    for path in sorted(base.iterdir()):
        if path.suffix != ".safetensors" and path != on_disk.manifest_of(base) and path.name not in without:
            shutil.copyfile(path, folder / path.name)


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
    config, content = _config_of(stage_dir), on_disk.read_state(step)
    return make_card(config, _stage_of(stage_dir), content["state"], content["meta"])


def _stage_of(stage_dir: Path) -> Stage:
    [stage] = [stage for stage in all_stages(_config_of(stage_dir)) if stage.name == stage_dir.name]
    return stage


def _config_of(stage_dir: Path) -> Config:
    config = load_dumped(stage_dir / "config.yaml")
    return replace(config, run=replace(config.run, dir=str(stage_dir.parent)))
