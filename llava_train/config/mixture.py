"""What a stage trains on: named sources, read from a mixture YAML, or one file of a person's own.

Our form is `sources: {NAME: {file, media_root, sampling, repeat, repository, licence}}`; the original's `datasets:
[{json_path, sampling_strategy}]` is read as well. Reads no records: those are `llava_train.data`'s.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from llava_train.config.paths import Pathname
from llava_train.config.sampling import parse_sampling
from llava_train.config.schema import DataConfig, StageConfig
from llava_train.config.shipped_files import shipped_mixtures
from llava_train.config.typed import build, nearest
from llava_train.records.file_formats import RECORD_SUFFIXES, format_of, split_of
from llava_train.shared.errors import ConfigError, Fault

MIXTURE_SUFFIXES = (".yaml", ".yml")
READABLE = f"records in {' '.join(RECORD_SUFFIXES)} or a folder of them, a folder of pictures, a mixture in .yaml"
UNRELEASED = "unreleased"


@dataclass
class SourceConfig:
    """A file or a folder of records or pictures. Paths are relative to `data.root`, media to `media_root` below it."""

    file: Pathname
    media_root: Pathname = ""
    sampling: str = "all"
    repeat: int = 1  # times that the sampled records are seen in an epoch
    repository: str = ""  # where it can be downloaded, or `unreleased`
    licence: str = ""  # as its publisher gives it, an SPDX id or words; "" = not given

    @property
    def path(self) -> Path:
        """The file without the split that may be named behind it."""
        return split_of(self.file)[0]


@dataclass
class _Mixture:
    sources: dict[str, SourceConfig]


@dataclass
class _OriginalEntry:
    json_path: Pathname
    sampling_strategy: str = "all"


@dataclass
class _OriginalMixture:
    datasets: list[_OriginalEntry]


def read_yaml(path: Path) -> DictConfig | ListConfig:
    """Content of a YAML file. Raises ConfigError where it is missing or not YAML; a key that stands twice is not."""
    try:
        return OmegaConf.load(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError.one(str(path), f"cannot be read ({error})", "check the path") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = f"is not valid YAML: {where}{getattr(error, 'problem', None) or error}"
        raise ConfigError.one(str(path), problem, "mend that line; each key stands once") from error


def load_mixture(name_or_path: str) -> dict[str, SourceConfig]:
    """Sources by name of a mixture in `data/mixtures`, or of a YAML file. Raises ConfigError with all its faults."""
    return _read_mixture(mixture_path(name_or_path))


def mixture_path(name_or_path: str) -> Path:
    """File of a mixture: a path if it ends in .yaml or .yml, else a name. Raises ConfigError if there is none."""
    if Path(name_or_path).suffix in MIXTURE_SUFFIXES:
        if not (path := Path(name_or_path)).is_file():
            raise ConfigError.one(name_or_path, "no such mixture file", "check the path of stages.STAGE.mixture")
        return path
    known = shipped_mixtures()
    if name_or_path not in known:
        close = nearest(name_or_path, known)
        remedy = f"did you mean {close}?" if close else f"known: {', '.join(known)}; or give the path of a .yaml file"
        raise ConfigError.one(name_or_path, "no such mixture", remedy)
    return known[name_or_path]


def stage_sources(data: DataConfig, stage: StageConfig) -> dict[str, SourceConfig]:
    """The sources of a stage, files and media folders joined to `data.root`. Raises ConfigError.

    `data.file` replaces the mixture; it is taken from the working directory, else from `data.root`. Sources that are
    not on disk are in the result, whatever `data.allow_missing_sources` says: the caller leaves them out, by name.
    """
    if data.file:
        return file_sources(data.file, data.root)
    if not stage.mixture:
        problem = "is empty, and the recipe brings no data of its own"
        raise ConfigError.one("data.file", problem, "set data.file=FILE, and data.root=DIR for its images")
    return _below(load_mixture(stage.mixture), data.root)


def is_readable(file: str, root: str) -> bool:
    """Whether a person's own file is of a kind that `file_sources` reads."""
    is_folder = split_of(file)[0].is_dir() or split_of(Path(root, file))[0].is_dir()
    return is_folder or split_of(file)[0].suffix.lower() in (*RECORD_SUFFIXES, *MIXTURE_SUFFIXES)


def file_sources(file: str, root: str) -> dict[str, SourceConfig]:
    """The sources of a person's own: a file of records, a folder, or a mixture YAML. Raises ConfigError."""
    if Path(file).suffix in MIXTURE_SUFFIXES:
        return _below(load_mixture(file), root)
    own, below = split_of(file)[0], split_of(Path(root, file))[0]
    is_below = below.exists() and not own.exists()
    return {own.stem: _with_folder(SourceConfig(file=str(Path(root, file) if is_below else file), media_root=root))}


def _below(sources: dict[str, SourceConfig], root: str) -> dict[str, SourceConfig]:
    return {
        name: _with_folder(
            replace(source, file=str(Path(root, source.file)), media_root=str(Path(root, source.media_root)))
        )
        for name, source in sources.items()
    }


def _with_folder(source: SourceConfig) -> SourceConfig:
    """Pictures lie in the folder that is read."""
    is_pictures = source.path.is_dir() and format_of(source.path) == "pictures"
    return replace(source, media_root=source.file) if is_pictures else source


def _read_mixture(path: Path) -> dict[str, SourceConfig]:
    content, faults = OmegaConf.to_container(read_yaml(path)), list[Fault]()
    original = isinstance(content, dict) and "datasets" in content and "sources" not in content
    made = build(_OriginalMixture if original else _Mixture, content, "", faults)
    where = f"{path}: "
    if faults:
        raise ConfigError([replace(fault, key=where + (fault.key or "top level")) for fault in faults])
    sources = _by_name(made.datasets, where) if original else made.sources
    for name, source in sources.items():
        faults += _source_faults(f"{where}{name}", source)
    if not sources:
        faults.append(Fault(f"{where}sources", "is empty", "name at least one source with its file"))
    if faults:
        raise ConfigError(faults)
    return dict(sources)


def _by_name(entries: list[_OriginalEntry], where: str) -> dict[str, SourceConfig]:
    """The original's list by file stem, by path where stems are equal. Raises ConfigError for a file listed twice."""
    sources: dict[str, SourceConfig] = {}
    faults = []
    stems = Counter(Path(path).stem for path in {entry.json_path for entry in entries})
    for entry in entries:
        path = Path(entry.json_path)
        name = path.stem if stems[path.stem] == 1 else str(path.with_suffix(""))
        if name in sources:
            faults.append(Fault(f"{where}{name}", "stands twice", "list a file once; repeat: N sees it several times"))
        sources[name] = SourceConfig(file=entry.json_path, sampling=entry.sampling_strategy)
    if faults:
        raise ConfigError(faults)
    return sources


def _source_faults(key: str, source: SourceConfig) -> list[Fault]:
    faults = []
    try:
        parse_sampling(source.sampling)
    except ValueError as error:
        problem, _, allowed = str(error).partition("; ")
        faults.append(Fault(f"{key}.sampling", problem, allowed))
    if source.repeat < 1:
        faults.append(Fault(f"{key}.repeat", f"is {source.repeat}", "set it to 1 or more, or leave the source out"))
    return faults
