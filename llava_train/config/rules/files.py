"""What a run needs on disk, judged without loading a pixel: sources, held-out samples, records for a batch."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llava_train.config.mixture import UNRELEASED, SourceConfig, file_sources, stage_sources
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import Config, StageConfig
from llava_train.records.file_formats import COUNT_LIMIT, FileFormat, format_of, shards, split_of
from llava_train.records.tables import read_plain
from llava_train.shared.errors import ConfigError, Fault, shortened
from llava_train.shared.unicode_names import other_form

TOLD_APART = 3  # missing sources of a mixture; more are one fault
PACKED_KINDS = ("parquet", "arrow", "tar")  # to count these takes a library, or reading them through
FORM_BYTES = 2**16  # of a file that are looked at to tell its form
ENCODINGS = {  # by how a file begins, with the mark of the order of bytes or without it
    (b"\xff\xfe\0\0", b"\0\0\xfe\xff", b"[\0\0\0", b"{\0\0\0"): "UTF-32",
    (b"\xff\xfe", b"\xfe\xff", b"[\0", b"{\0", b"\0[", b"\0{"): "UTF-16",
}
CONTENTS = {b"\x1f\x8b": "is compressed by gzip", b"PK\x03\x04": "is a zip archive", b"PAR1": "is Parquet"}


@dataclass
class StageRecords:
    """How much a stage would train on, as far as its files can be counted at once."""

    num_samples: int = 0
    not_counted: list[str] = field(default_factory=list)  # sources that take too long to count here
    left_out: list[str] = field(default_factory=list)  # sources not on disk, under data.allow_missing_sources


def check_files(
    config: Config, more: Sequence[Callable[[Config], list[Fault]]] = (), complete: bool = True
) -> tuple[dict[str, StageRecords], list[Fault]]:
    """Records by stage, and all faults, those of `more` checks among them.

    Of a config that is not `complete`, what needs an absent field is not judged.
    """
    records: dict[str, StageRecords] = {}
    faults: list[Fault] = []
    checks = [partial(check, config) for check in (task_faults, held_out_faults, *more)]
    for name, stage in getattr(config, "stages", {}).items():
        records[name] = StageRecords()
        checks.append(partial(stage_faults, config, name, stage, records[name]))
    for check in checks:
        try:
            faults += check()
        except AttributeError:
            if complete:
                raise
    return records, list(dict.fromkeys(faults))  # what all stages read is wrong once


def task_faults(config: Config) -> list[Fault]:
    """Held-out questions that are not on disk."""
    faults = []
    for name, task in config.evaluation.tasks.items():
        if not (path := split_of(Path(config.data.root, task.file))[0]).is_file():
            remedy = f"put it there, set data.root, or leave it out: ~evaluation.tasks.{name}"
            faults.append(Fault(f"evaluation.tasks.{name}.file", f"no file {path}{other_form(path)}", remedy))
    return faults


def held_out_faults(config: Config) -> list[Fault]:
    """Sources of `evaluation.file` that are not on disk."""
    key = "evaluation.file"
    if not config.evaluation.file:
        return []
    try:
        sources = file_sources(config.evaluation.file, config.data.root)
    except ConfigError as error:
        return [Fault(key, f"{fault.key}: {fault.problem}", fault.remedy) for fault in error.faults]
    problems = {name: source_problem(source, own=True)[0] for name, source in sources.items()}
    remedy = "check evaluation.file and data.root, or hold samples out: evaluation.held_out=0.05"
    return [Fault(key, f"source {name}: {problem}", remedy) for name, problem in problems.items() if problem]


def stage_faults(config: Config, name: str, stage: StageConfig, records: StageRecords) -> list[Fault]:
    """Sources of a stage that are missing or not readable, and too few records; counts into `records`."""
    data, key = config.data, "data.file" if config.data.file else f"stages.{name}.mixture"
    try:
        sources = stage_sources(data, stage)
    except ConfigError as error:
        return [Fault(key, f"{fault.key}: {fault.problem}", fault.remedy) for fault in error.faults]
    faults, missing = list[Fault](), dict[str, Fault]()
    for source_name, source in sources.items():
        if not source.path.exists() and data.allow_missing_sources and not data.file:
            records.left_out.append(source_name)
            continue
        problem, remedy = source_problem(source, own=bool(data.file))
        if problem:
            fault = Fault(key, f"source {source_name}: {problem}", remedy)
            if source.path.exists():
                faults.append(fault)
            else:
                missing[source_name] = fault
        elif format_of(source.path) in PACKED_KINDS or _size(source.path) > COUNT_LIMIT:
            records.not_counted.append(source_name)
        else:
            try:
                size = parse_sampling(source.sampling).size(count_records(source.file))
            except ValueError as error:
                faults.append(Fault(key, f"source {source_name}: {source.file}: {error}", "mend the file"))
                continue
            records.num_samples += size * source.repeat
    if len(missing) > TOLD_APART:
        faults.append(_missing_fault(key, stage.mixture, list(missing), sources, data.root))
    else:
        faults = [*missing.values(), *faults]
    if len(records.left_out) == len(sources):
        faults.append(Fault(key, "not one of its sources is on disk", f"set data.root; now it is {data.root}"))
    elif not faults and not records.not_counted and not records.num_samples:
        faults.append(Fault(key, f"no record is taken of {', '.join(sources)}", "give it some, or sample more of it"))
    elif not faults and not records.not_counted and _wants_more(records, stage):
        problem = f"{records.num_samples} samples are fewer than one batch of {stage.global_batch_size}"
        batch_key = f"stages.{name}.global_batch_size"
        faults.append(Fault(batch_key, problem, f"set {batch_key}={records.num_samples} or less, or add samples"))
    return faults


def _missing_fault(key: str, mixture: str, missing: list[str], sources: dict[str, SourceConfig], root: str) -> Fault:
    """One for many sources, with the line that fetches those that are published."""
    published = [name for name in missing if sources[name].repository not in ("", UNRELEASED)]
    more = " ..." * (len(published) > TOLD_APART)
    fetch = f"python data/scripts/download_source.py {mixture} {' '.join(published[:TOLD_APART])}{more} --root {root}"
    remedies = [fetch] * bool(published) + ["or set data.root, or leave them out: data.allow_missing_sources=true"]
    return Fault(
        key,
        f"{len(missing)} of {len(sources)} sources are not on disk: {shortened(missing, TOLD_APART)}",
        "\n       ".join(remedies),
    )


def _wants_more(records: StageRecords, stage: StageConfig) -> bool:
    return stage.pack.unit == "samples" and records.num_samples < stage.global_batch_size


def source_problem(source: SourceConfig, own: bool) -> tuple[str, str]:
    """What keeps a source from being read, and the remedy; two empty texts if nothing does. `own`: it is data.file."""
    if not source.path.exists():
        leave_out = "data.allow_missing_sources=true leaves absent sources out"
        if own:
            remedy = "check data.file and data.root"
        elif source.repository == UNRELEASED:
            remedy = f"it was never released; {leave_out}"
        else:
            where = f"download {source.repository}" if source.repository else "put it there"
            remedy = f"{where}, or set data.root; {leave_out}"
        return f"no file {source.path}{other_form(source.path)}", remedy
    try:
        if format_of(*split_of(source.file)) in (*PACKED_KINDS, "jsonl"):
            shards(*split_of(source.file))
        if (kind := format_of(*split_of(source.file))) in ("json", "jsonl"):
            problems = [form_problem(file, kind) for file in shards(*split_of(source.file))]
            if found := next((problem for problem in problems if problem[0]), None):
                return found
    except (OSError, ValueError) as error:
        return f"{source.path} {error}", "name a file or folder of one of the formats of docs/data.md"
    if not (folder := Path(source.media_root)).is_dir():
        return f"no media folder {folder}{other_form(folder)}", "put the images and videos there, or set data.root"
    return "", ""


def form_problem(path: Path, kind: FileFormat) -> tuple[str, str]:
    """What a JSON or JSONL file holds other than its name says, by how it begins, and the remedy; else empty."""
    with path.open("rb") as file:
        begins = file.read(FORM_BYTES)
    for marks, name in ENCODINGS.items():
        if begins.startswith(marks):
            return f"{path}: is {name}", f"save it as UTF-8: iconv -f {name} -t UTF-8 {path.name} > NEW"
    for mark, holds in CONTENTS.items():
        if begins.startswith(mark):
            return f"{path}: {holds}", "give it the name of what it holds, or unpack it"
    text = begins.removeprefix(BOM_UTF8).decode(errors="replace").lstrip()
    if kind == "jsonl" and text.startswith("["):
        return f"{path}: holds a JSON list under the name of JSONL", f"call it {path.with_suffix('.json').name}"
    first, _, rest = text.partition("\n")
    if kind == "json" and text.startswith("{") and rest.strip() and _is_json(first):
        return f"{path}: holds a record a line under the name of JSON", f"call it {path.with_suffix('.jsonl').name}"
    return "", ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def count_records(file: str | Path) -> int:
    """Records of a JSON list, a table or a folder, or non-blank lines of a JSONL file. ValueError if it is none."""
    path, split = split_of(file)
    if (kind := format_of(path, split)) in ("table", "pictures"):
        return len(read_plain(path, split))
    if kind == "jsonl":
        return sum(1 for file in shards(path, split) for line in file.open("rb") if line.strip())
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, list):
        raise ValueError("is JSON, but no list of records")
    return len(content)


def _size(path: Path) -> int:
    """In bytes, of a folder what lies in it without its folders."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
