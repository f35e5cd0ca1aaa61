"""Stage to stage by name: which are left to do, where each starts, and whether its folder may be continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_train.config.fingerprint import (
    DATA_PLACES,
    START_PLACES,
    changed_settings,
    fingerprint,
    place,
    start_content,
    with_defaults,
)
from llava_train.config.schema import Config, ModelConfig, StageConfig
from llava_train.data.samples.sampled_records import present_sources
from llava_train.ranks.process_group import Ranks
from llava_train.records.identity import changed_records as record_differences
from llava_train.records.identity import identify_again
from llava_train.records.readers.open import open_source
from llava_train.shared.console import console
from llava_train.shared.errors import ConfigError, DataError, RunError
from llava_train.shared.json_files import read_json
from llava_train.shared.whole_files import write_json
from llava_train.train.checkpoint import on_disk
from llava_train.train.checkpoint.run_folder import FINISHED
from llava_train.train.run.pack_too_large import with_lowered

EXPORT, ADAPTER = "hf", "adapter"
RECORDS, HELD_OUT_RECORDS = "records", "held_out_records"  # in a checkpoint: what identifies those of each source
_ANEW = "to train on what is there now: run.dir=DIR, a folder of its own"
_ROUNDING = (
    "  with another number of ranks, ZeRO level or packing the losses agree to about 1e-5 relative, not bit for bit"
)


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its settings, its folder and the weights that it starts from."""

    name: str
    label: str  # "2/4 mid", for people
    settings: StageConfig
    folder: Path
    start: ModelConfig

    @property
    def export(self) -> Path:
        return self.folder / EXPORT

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def is_finished(self) -> bool:
        return (self.folder / FINISHED).exists()

    @property
    def remedy(self) -> str:
        """Where the export of a finished stage is gone."""
        words = f"run.dir={self.folder.parent} stage={self.name} merge=true out={self.export}"
        return f"python -m llava_train export {words} writes it again"

    def meta(self) -> dict[str, Any]:
        """Settings and data that it was finished with."""
        return self._finished()["meta"]

    def summary(self) -> dict[str, Any]:
        """What `finish` wrote: steps, samples, tokens, seconds, last loss, what was left out."""
        return self._finished()["summary"]

    def _finished(self) -> dict[str, Any]:
        return read_json(self.folder / FINISHED)


def all_stages(config: Config) -> list[Stage]:
    """The run's stages in order, each starting from the export of the one before."""
    stages: list[Stage] = []
    start = config.model
    for number, (name, settings) in enumerate(config.stages.items(), 1):
        folder = Path(config.run.dir) / name
        settings = with_lowered(settings, folder) if config.train.fit else settings
        stages.append(Stage(name, f"{number}/{len(config.stages)} {name}", settings, folder, start))
        start = replace(config.model, init=str(folder / EXPORT))
    return stages


def pending_stages(config: Config, ranks: Ranks) -> list[Stage]:
    """The stages that are not finished. Raises RunError where a folder holds a run with other settings."""
    stages = all_stages(config)
    for stage in stages:
        _compare_settings(config, stage, resume_meta(config, stage, ranks.world_size), ranks)
    pending = [stage for stage in stages if not stage.is_finished]
    if done := [stage for stage in stages if stage.is_finished]:
        told = f"{len(done)} of {len(stages)} stages were finished before" + ("" if pending else ": all is done")
        lines = [told, *(f"  stage {stage.label}: {_trained_on(stage)}" for stage in done)]
        console(ranks.is_first).print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return pending


def resume_meta(config: Config, stage: Stage, world_size: int) -> dict[str, Any]:
    """What a checkpoint keeps to be compared before a resume."""
    marks = fingerprint(config, stage.name, world_size)
    starts = {
        key: start_content(getattr(config.model, key.partition(".")[2]))
        for key in START_PLACES
        if key in marks["places"]
    }
    return {"fingerprint": marks, "starts": starts}


def _trained_on(stage: Stage) -> str:
    meta = stage.meta()
    counts = ", ".join(f"{number:,} samples of {name}" for name, number in meta["data"].items())
    file = meta["fingerprint"].get("places", {}).get("data.file")
    gone = "" if stage.export.is_dir() else f"; {stage.export} is gone\n    -> {stage.remedy}"
    return counts + (f", from {file}" if file else "") + gone


def _compare_settings(config: Config, stage: Stage, meta: dict[str, Any], ranks: Ranks) -> None:
    """Says which settings changed since the checkpoint. Raises RunError where one did that must not."""
    saved = stage.meta() if stage.is_finished else on_disk.newest_meta(stage.folder)
    if saved is None:
        return
    then, now = _with_places(saved["fingerprint"], config.run.dir), meta["fingerprint"]
    known = then["fixed"] | then["free"]
    fixed, free = (changed_settings(with_defaults(then[k], now[k], known), now[k]) for k in ("fixed", "free"))
    moved, other = _compare_places(then["places"], now["places"], saved.get("starts", {}), meta["starts"])
    changed = ranks.first(_changed_data(config, stage, saved) if ranks.is_first and stage.is_finished else [])
    elsewhere = any(line.startswith(DATA_PLACES) for line in moved)  # another file, and not of the same records
    refuse(stage, fixed + other + (changed if elsewhere else []), moved + free)
    told = [f"stage {stage.label} was trained on other data: {line}\n    -> {_ANEW}" for line in changed]
    if (free or moved) and not stage.is_finished:
        told = [f"stage {stage.label}, changed since the checkpoint: {line}" for line in moved + free]
        told += [_ROUNDING] if free else []
    if told:
        console(ranks.is_first).print("\n".join(told), highlight=False, markup=False, soft_wrap=True)


def _with_places(marks: dict[str, Any], run_dir: str) -> dict[str, Any]:
    """An older fingerprint has the places as they were given, among what is fixed."""
    if "places" in marks:
        return marks
    given = {key: marks["fixed"][key] for key in (*DATA_PLACES, *START_PLACES) if marks["fixed"].get(key)}
    fixed = {key: value for key, value in marks["fixed"].items() if key not in (*DATA_PLACES, *START_PLACES)}
    return marks | {"fixed": fixed, "places": {key: place(value, run_dir) for key, value in given.items()}}


def _compare_places(
    then: dict[str, str], now: dict[str, str], contents_then: dict[str, str], contents: dict[str, str]
) -> tuple[list[str], list[str]]:
    """What is read from another place than before: files of the same content, or of records that are compared where
    they are read; and what is not the same."""
    moved, other = [], []
    for line in changed_settings(then, now):
        key = line.partition(":")[0]
        if key in DATA_PLACES and key in then and key in now:
            moved.append(line)
        elif contents_then.get(key) and contents_then[key] == contents.get(key):
            moved.append(f"{line}, of the same content")
        else:
            other.append(line)
    return moved, other


def _changed_data(config: Config, stage: Stage, saved: dict[str, Any]) -> list[str]:
    """How the records of a finished stage differ from those on disk now; one process reads them, if files changed."""
    lines = []
    for kind, key in _data_keys(config, stage).items():
        data = replace(config.data, file=config.evaluation.file) if kind == HELD_OUT_RECORDS else config.data
        if before := saved.get(kind):
            try:
                sources = {n: open_source(s.file, n) for n, s in present_sources(data, stage.settings).items()}
                lines += [f"{key}: {line}" for line in record_differences(before, identify_again(sources, before))]
            except (ConfigError, DataError) as error:
                lines.append(f"{key}: cannot be read now: {error}")
    return lines


def data_differences(config: Config, stage: Stage, saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines for the sources, of training and held out, whose records or samples are not those of the checkpoint."""
    lines = []
    for kind, key in _data_keys(config, stage).items():
        before = saved.get(kind, now[kind])  # an older checkpoint has none
        lines += [f"{key}: {line}" for line in record_differences(before, now[kind])]
    counts, current = saved["data"], now["data"]
    if len(counts) == len(current) == 1:  # a file may have another name
        counts = dict(zip(current, counts.values(), strict=True))
    return lines + [f"samples of {line}" for line in changed_settings(counts, current)]


def _data_keys(config: Config, stage: Stage) -> dict[str, str]:
    """The setting that names the sources, by kind of records."""
    key = "data.file" if config.data.file else f"stages.{stage.name}.mixture"
    return {RECORDS: key, HELD_OUT_RECORDS: "evaluation.file"}


def refuse(stage: Stage, fixed: list[str], free: Sequence[str] = ()) -> None:
    """Raises RunError if there are differences between a stage's checkpoint and this run that may not be: `fixed`."""
    if fixed:
        listed = [f"{stage.folder} holds a run with other settings (in the checkpoint -> now)", "  not allowed:"]
        listed += [f"    {line}" for line in fixed]
        if free:
            listed += ["  allowed:", *(f"    {line}" for line in free)]
        way_out = "    -> set back what is not allowed, or give the new run a folder of its own: run.dir=DIR"
        raise RunError("\n".join([*listed, way_out]))


def finish(stage: Stage, meta: dict[str, Any], summary: dict[str, Any]) -> None:
    write_json(stage.folder / FINISHED, {"meta": meta, "summary": summary})
