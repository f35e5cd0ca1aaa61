"""Where the start of a run lies, and which of its files are its weights.

Enters: a folder, or the name of a model on the hub. Every verb, every ZeRO level, adapters and exports read a model's
weights from the files that are named here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llava_train.shared.errors import ConfigError
from llava_train.start_folder.files import object_or_empty, read_or_empty

TINY = "tiny"  # the value of model.init that stands for random weights
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_WEIGHTS, "adapter_model.bin")
SUPPORT = ("*.json", "*.jinja", "*.txt", "*.model", "README.md")  # what is fetched of a hub name beside its weights
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_name(name: str) -> bool:
    """Whether a start names a model on the hub: ORG/NAME, where nothing of that name, nor ORG, lies on disk."""
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists() and not Path(name).parent.exists()


def folder_here(name: str) -> Path | None:
    """The folder of a start as it is on this machine: itself, or a hub's copy in the cache, which may lack weights."""
    if not is_hub_name(name):
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def has_all_weights(folder: Path) -> bool:
    files = weight_files(folder)
    return bool(files) and all(path.is_file() for path in files)


def local_folder(key: str, name: str, weights: bool) -> Path:
    """As `folder_here`; what is not here of a hub name is fetched, where `weights` these too.

    What is here is taken without a look at the network. Raises ConfigError where the hub cannot be reached.
    """
    folder = folder_here(name)
    if folder and not (is_hub_name(name) and weights and not has_all_weights(folder)):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    unreachable: Any = (OSError, *HfHubHTTPError.__bases__)  # the errors of its HTTP library among them
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*SUPPORT]))
        if weights:
            wanted = [path.name for path in weight_files(folder)] or [WEIGHTS]
            folder = Path(snapshot_download(name, allow_patterns=[*SUPPORT, WEIGHTS, *wanted]))
    except unreachable as error:
        raise ConfigError.one(key, *_not_here(key, name, str(error))) from error
    if weights and not has_all_weights(folder):  # it takes what is cached where it reaches no hub
        raise ConfigError.one(
            key, *_not_here(key, name, f"it is out of reach, or holds no {WEIGHTS} and no {INDEX} of it")
        )
    return folder


def _not_here(key: str, name: str, reason: str) -> tuple[str, str]:
    told = next(iter(reason.strip().splitlines()), "")
    problem = f"{name} is not whole on this machine, and the hub does not give it: {told}"
    return problem, f"check the name, the network, HF_TOKEN and HF_HUB_OFFLINE; or download it and set {key}=DIR"


def weight_files(folder: Path, pickled: bool = False) -> list[Path]:
    """The files of a folder's weights, by transformers' own rule: model.safetensors, else those that its index names.

    Other files are no part of the checkpoint. pickled: where there are none, pytorch_model.bin by the same rule. What
    an index names need not be there. Empty where there are no weights, or an index cannot be read.
    """
    for single, index in ((WEIGHTS, INDEX), PICKLES) if pickled else ((WEIGHTS, INDEX),):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            names = [*object_or_empty(read_or_empty(folder / index).get("weight_map")).values()]
            is_sound = all(isinstance(name, str) for name in names)
            return [folder / name for name in sorted(set(names))] if is_sound else []
    return []


def stamps(folder: str) -> list[list[Any]]:
    """Name, bytes and time of each file of the weights of a model or adapter on this machine; empty for other names."""
    here = folder_here(folder) if folder else None
    files = [*weight_files(here), here / ADAPTER_WEIGHTS] if here else []
    return [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files if path.is_file()]
