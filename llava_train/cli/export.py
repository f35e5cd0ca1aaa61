"""`export`: a Hugging Face folder or an adapter from any step checkpoint of a run, proved before it takes its place."""

from __future__ import annotations

from pathlib import Path

from llava_train.config.load import load_dumped, load_verb
from llava_train.config.schema import ExportConfig
from llava_train.config.typed import nearest
from llava_train.shared.console import console
from llava_train.shared.errors import ConfigError
from llava_train.train.checkpoint import on_disk


def run(argv: list[str]) -> int:
    """Writes the folder and prints what was proved of it. Raises ConfigError, RunError."""
    config = load_verb(ExportConfig, argv)
    stage_dir = find_stage(config)
    step = find_step(stage_dir, config.step)
    if found := on_disk.damage(base := stage_dir / on_disk.BASE):
        raise ConfigError.one(
            "run.dir", f"{base} is damaged: {found}", "put that file back as it was; every step needs it"
        )
    if found := on_disk.damage(step):
        raise ConfigError.one("step", f"{step} is damaged: {found}", f"take another: {_steps(stage_dir)}")
    from llava_train.train.export.export import export_adapter, export_checkpoint, report_table

    terminal = console(True)
    if load_dumped(stage_dir / "config.yaml").stages[stage_dir.name].lora and not config.merge:
        report = export_adapter(stage_dir, step, Path(config.out))
        told = f", an adapter of {report['parameters']:,} parameters; merge=true gives the whole model"
    else:
        terminal.print(report_table(export_checkpoint(stage_dir, step, Path(config.out))))
        told = ""
    terminal.print(f"{step} is exported to {config.out}{told}", highlight=False)
    return 0


def find_stage(config: ExportConfig) -> Path:
    """The folder of `config.stage`, or of the run's last stage with a checkpoint. Raises ConfigError."""
    folder = Path(config.run.dir)
    dumped = next(iter(sorted(folder.glob("*/config.yaml"))), None)
    if dumped is None:
        raise ConfigError.one(
            "run.dir", f"{folder} is no run: it holds no STAGE/config.yaml", "name the folder of a run"
        )
    names = list(load_dumped(dumped).stages)
    with_steps = [name for name in names if on_disk.whole_checkpoints(folder / name)]
    if not with_steps:
        raise ConfigError.one("run.dir", f"no stage of {folder} has a checkpoint yet", "train on until one is written")
    name = config.stage or with_steps[-1]
    if name not in with_steps:
        close = nearest(name, with_steps)
        problem = f"stage {name} has no checkpoint" if name in names else f"no stage {name}"
        raise ConfigError.one(
            "stage", problem, f"did you mean {close}?" if close else f"with one: {', '.join(with_steps)}"
        )
    return folder / name


def find_step(stage_dir: Path, step: int) -> Path:
    """The folder of that step, of the newest for 0. Raises ConfigError."""
    folders = on_disk.whole_checkpoints(stage_dir)
    found = [folder for folder in folders if step in (0, on_disk.step_of(folder))]
    if not found:
        raise ConfigError.one(
            "step", f"{stage_dir} has no checkpoint of step {step}", f"take one of these: {_steps(stage_dir)}"
        )
    return found[0]


def _steps(stage_dir: Path) -> str:
    steps = sorted(map(on_disk.step_of, on_disk.whole_checkpoints(stage_dir)))
    return ", ".join(f"step={step}" for step in steps)
