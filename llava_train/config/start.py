"""A checkpoint folder without a heavy library: which files are its weights, what they hold, and what is wrong with it.

Enters: a folder, or the name of a model on the hub. Leaves: a `Start`, from JSON files and the headers of safetensors
alone. Every verb, every ZeRO level, adapters and exports read a model's weights from the files that are named here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from llava_train.shared.errors import ConfigError, Fault, shortened
from llava_train.shared.json_files import read_json

TINY = "tiny"  # the value of model.init that stands for random weights
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
JSON_FILES = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "processor_config.json", "chat_template.json", "llava_train.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json"),
)
SUPPORT = ("*.json", "*.jinja", "*.txt", "*.model", "README.md")  # what is fetched of a hub name beside its weights
FLOATS = ("F64", "F32", "BF16", "F16")  # types of plain weights; I64 and BOOL are those of buffers
PLAIN = (*FLOATS, "I64", "BOOL")
INNER = ("text_config", "vision_config")
LFS_MARK = b"version https://git-lfs.github.com/spec/v1"
MAX_HEADER = 100_000_000  # bytes; safetensors itself reads no longer one

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_QUANTISED_KEY = re.compile(  # scales and states of bitsandbytes, GPTQ, AWQ, FP8 and compressed-tensors
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+|SCB|qweight|qzeros|g_idx|weight_packed"
    r"|weight_scale|weight_scale_inv)$"
)
_EMBEDDING = re.compile(r"(^|\.)embed_tokens\.weight$")
_ELSEWHERE = {  # what to do where a setting leads to no folder
    "model.init": "run the recipe that writes this folder first, or start elsewhere: model.init=DIR_OR_HUB_NAME"
}


class Stored(NamedTuple):
    """dtype: as safetensors writes it, for instance BF16."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@dataclass(frozen=True)
class Start:
    """name: as `key` of the config gives it. files: of its weights, in order; none where they are not here yet."""

    key: str
    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    tensors: dict[str, Stored] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        """Of the token embedding."""
        shapes = (stored.shape for name, stored in self.tensors.items() if _EMBEDDING.search(name))
        return next((shape[0] for shape in shapes if shape), None)

    @cached_property
    def _listed_tokens(self) -> tuple[int, dict[str, int]]:
        """By tokenizer.json: how many ids a vocabulary takes, and the ids of the tokens that are kept whole."""
        content = _read(self.folder / "tokenizer.json")
        vocabulary = _object(content.get("model")).get("vocab") or {}
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        size = max((i for i in ids if isinstance(i, int)), default=-1) + 1
        added = content.get("added_tokens") or []
        tokens = [(token, token.get("id", -1)) for token in map(_object, added)]
        if content:
            named = _object(_read(self.folder / "tokenizer_config.json").get("added_tokens_decoder"))
            tokens += [(_object(token), int(i)) for i, token in named.items() if i.isdecimal()]
        return size, {token["content"]: i for token, i in tokens if "content" in token}

    def token_id(self, token: str) -> int | None:
        """Of a token that the tokenizer keeps whole, as far as its JSON files tell."""
        return self._listed_tokens[1].get(token)

    @property
    def added_tokens(self) -> set[str]:
        """Texts of the tokens that a tokenizer keeps whole; none where there is no tokenizer.json to tell."""
        return set(self._listed_tokens[1])

    def num_tokens(self, besides: Collection[str] = ()) -> int:
        """Ids that the tokenizer may give, those of `besides` left out, as far as its JSON files tell."""
        size, added = self._listed_tokens
        added = {t: i for t, i in _read(self.folder / "added_tokens.json").items() if isinstance(i, int)} | added
        return max([size - 1, *(i for token, i in added.items() if token not in besides)]) + 1


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
        raise _fault(key, *_not_here(key, name, str(error))) from error
    if weights and not has_all_weights(folder):  # it takes what is cached where it reaches no hub
        raise _fault(key, *_not_here(key, name, f"it is out of reach, or holds no {WEIGHTS} and no {INDEX} of it"))
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
            names = [*_object(_read(folder / index).get("weight_map")).values()]
            is_sound = all(isinstance(name, str) for name in names)
            return [folder / name for name in sorted(set(names))] if is_sound else []
    return []


def stamps(folder: str) -> list[list[Any]]:
    """Name, bytes and time of each file of the weights of a model or adapter on this machine; empty for other names."""
    here = folder_here(folder) if folder else None
    files = [*weight_files(here), here / ADAPTER_WEIGHTS] if here else []
    return [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files if path.is_file()]


def read_start(key: str, name: str, folder: Path, weights: bool = True) -> tuple[Start, list[Fault]]:
    """What lies in the folder of the start that `key` names, and what is wrong with it, all faults at once.

    Its type of model is for the caller to judge. weights: they are judged too, and then must be there.
    """
    start = Start(key, name, folder)
    if not folder.is_dir():
        return start, [_no_folder(key, name, folder)]
    is_model = (folder / "config.json").is_file()
    faults = _adapter_faults(key, name, folder, is_model)
    if not is_model:
        problem = f"{name} has no config.json, so it is no checkpoint"
        return start, faults or [Fault(key, problem, "name a folder that from_pretrained of transformers takes")]
    faults += [fault for file in ("config.json", *JSON_FILES) if (fault := json_fault(key, folder / file))]
    config = _read(folder / "config.json")
    if not (faults or config):
        faults.append(Fault(key, f"{folder / 'config.json'} holds an empty object", "download or copy it again"))
    for part in [part for part in INNER if not isinstance(config.get(part, {}), dict)]:
        if config.pop(part) is not None:  # null stands for what transformers takes by itself
            faults.append(Fault(key, f"{folder / 'config.json'}: its {part} is no object", "download or copy it again"))
    if key != "model.vision_tower":
        faults += _tokenizer_faults(key, name, folder)
    if not weights:
        return Start(key, name, folder, config), faults + _quantised_faults(key, name, config, {})
    files = tuple(weight_files(folder))
    tensors: dict[str, Stored] = {}
    faults += _weight_faults(key, name, folder, config, files)
    for path in files:
        if path.is_file():
            try:
                tensors |= read_header(key, path)
            except ConfigError as error:
                faults += error.faults
    faults += _quantised_faults(key, name, config, tensors)
    return Start(key, name, folder, config, files, tensors), faults


def _no_folder(key: str, name: str, folder: Path) -> Fault:
    if folder.is_file():
        return Fault(key, f"{name} is a file, not a folder", f"name the folder that it lies in: {key}={folder.parent}")
    if "://" in name:
        remedy = f"name a model on the hub by ORG/NAME alone: {key}={'/'.join(name.split('/')[-2:])}"
        return Fault(key, f"{name} is an address, not a folder", remedy)
    return Fault(key, f"no folder {name}", _ELSEWHERE.get(key, f"put it there, or set {key}=DIR_OR_HUB_NAME"))


def read_header(key: str, path: Path) -> dict[str, Stored]:
    """What a safetensors file holds, by its header; the data behind it is measured, not read. Raises ConfigError."""
    if fault := pointer_fault(key, path):
        raise ConfigError([fault])
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER else b""
    if size < 8 or (header[:1] == b"{" and len(header) < length):
        raise _fault(key, f"{path} is cut off: it has {size:,} bytes", "download or copy it again")
    try:
        content = json.loads(header)
        content.pop("__metadata__", None)
        found = {name: Stored(entry["dtype"], tuple(entry["shape"]), path) for name, entry in content.items()}
        end = _end_of(sorted(tuple(entry["data_offsets"]) for entry in content.values()))
        if not all(isinstance(stored.dtype, str) for stored in found.values()):
            raise ValueError("a type is no text")
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise _fault(key, f"{path} is no safetensors file", "download or copy it again") from error
    due = 8 + length + end
    if size != due:
        what = "is cut off" if size < due else "has something behind its end"
        problem = f"{path} {what}: it has {size:,} bytes instead of {due:,}"
        raise _fault(key, problem, "download or copy it again")
    return found


def _end_of(spans: list[tuple[int, int]]) -> int:
    """Bytes of the data: spans (begin, end) of the tensors, in order. Raises ValueError where they leave a gap or
    overlap, which safetensors does not read either."""
    end = 0
    for begin, next_end in spans:
        if begin != end or next_end < begin:
            raise ValueError(f"a tensor begins at {begin}, not at {end}")
        end = next_end
    return end


def pointer_fault(key: str, path: Path) -> Fault | None:
    """Where a file is a Git LFS pointer in place of what it should hold."""
    with path.open("rb") as file:
        if not file.read(len(LFS_MARK)).startswith(LFS_MARK):
            return None
    problem = f"{path} is a Git LFS pointer, not the file itself"
    return Fault(key, problem, f"run `git lfs pull` in {path.parent}, or download it from the hub")


def _adapter_faults(key: str, name: str, folder: Path, is_model: bool) -> list[Fault]:
    """Beside a model, transformers would load the adapter's own base in place of that model."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return []
    base = _read(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "BASE"
    if is_model:
        problem = f"{name} holds an adapter ({ADAPTER_CONFIG}) beside a model"
        return [Fault(key, problem, f"move {ADAPTER_CONFIG} and adapter_model.* to a folder of their own")]
    merged = "export its run with merge=true; generate and evaluate take it as adapter=DIR"
    return [Fault(key, f"{name} is an adapter, no model", f"start from its base: {key}={base}. To merge it, {merged}")]


def json_fault(key: str, path: Path) -> Fault | None:
    """Where a file is there and holds no JSON object."""
    if path.is_file():
        try:
            read_object(key, path)
        except ConfigError as error:
            return error.faults[0]
    return None


def read_object(key: str, path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ConfigError."""
    try:
        fault = pointer_fault(key, path)
        content = None if fault else read_json(path)
    except OSError as error:
        raise _fault(key, f"{path} cannot be read: {error.strerror}", "give a whole checkpoint folder") from error
    except ValueError as error:
        problem = f"{path} is no JSON: {str(error).splitlines()[0]}"
        raise _fault(key, problem, "download or copy it again") from error
    if fault:
        raise ConfigError([fault])
    if not isinstance(content, dict):
        raise _fault(key, f"{path} holds no JSON object", "download or copy it again")
    return content


def _tokenizer_faults(key: str, name: str, folder: Path) -> list[Fault]:
    there = [folder / file for file in TOKENIZERS if (folder / file).is_file()]
    if not there:
        remedy = "copy the tokenizer files of its language model there"
        return [Fault(key, f"{name} has no tokenizer ({', '.join(TOKENIZERS[:3])})", remedy)]
    texts = sorted(path for ending in ("*.model", "*.txt", "*.jinja") for path in folder.glob(ending) if path.is_file())
    faults = [fault for path in texts if (fault := pointer_fault(key, path))]
    path = folder / "tokenizer.json"
    added = (content := _read(path)).get("added_tokens") or []
    has_form = content and isinstance(content.get("model", {}), dict) and isinstance(added, list)
    if path.is_file() and not json_fault(key, path) and not (has_form and all(isinstance(t, dict) for t in added)):
        faults.append(Fault(key, f"{path} is JSON, but no tokenizer", "download or copy it again"))
    return faults


def _weight_faults(key: str, name: str, folder: Path, config: dict[str, Any], files: tuple[Path, ...]) -> list[Fault]:
    """No weights that are read, files of the index that are not there, or a config that names files of its own."""
    named = [part["transformers_weights"] for part in (config, *_parts(config)) if part.get("transformers_weights")]
    if named:
        problem = f"{name}: config.json names its weights itself (transformers_weights: {named[0]})"
        return [Fault(key, problem, f"rename them to {WEIGHTS} or index them in {INDEX}, and remove that entry")]
    if outside := [path for path in files if path.parent != folder]:
        problem = f"{folder / INDEX} names {outside[0]}, which does not lie beside it"
        return [Fault(key, problem, f"put all weights into {name} itself, and name them in {INDEX} without a folder")]
    if missing := [path.name for path in files if not path.is_file()]:
        problem = f"{name} misses {shortened(missing, 5)}, which {INDEX} names"
        return [Fault(key, problem, "download or copy the whole folder again")]
    if files:
        return []
    if (folder / INDEX).is_file():
        return [json_fault(key, folder / INDEX) or Fault(key, f"{folder / INDEX} names no files", "download it again")]
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
    if any(path.startswith("pytorch_model") for path in pickles):
        problem = f"{name} holds pickled weights alone ({pickles[0]}), which are not read: a pickle can run code"
        remedy = "take the checkpoint's safetensors, or load it with transformers and save_pretrained it"
        return [Fault(key, problem, remedy)]
    others = [*pickles, *sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".gguf"))]
    there = f"; {', '.join(others[:3])} there is no part of a checkpoint by itself" if others else ""
    problem = f"{name} has no weights: neither {WEIGHTS} nor {INDEX}{there}"
    return [Fault(key, problem, "download or copy the whole folder again")]


def _quantised_faults(key: str, name: str, config: dict[str, Any], tensors: Mapping[str, Stored]) -> list[Fault]:
    said = [
        part[k] for part in (config, *_parts(config)) for k in ("quantization_config", "quantization") if part.get(k)
    ]
    kinds = sorted({stored.dtype for stored in tensors.values() if stored.dtype not in PLAIN})
    stored = bool(kinds) or any(_QUANTISED_KEY.search(tensor) for tensor in tensors)
    if not (said or stored):
        return []
    method = said[0].get("quant_method", "") if said and isinstance(said[0], dict) else ""
    told = f"{name} is quantised" + (f" ({method})" if method else "")
    if said and tensors and not stored:
        floats = ", ".join(sorted({tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS}))
        problem = f"{name}: config.json says quantization_config ({method}), and its weights are plain {floats}"
        return [Fault(key, problem, f"remove quantization_config from {name}/config.json")]
    if kinds:
        told += f": it holds weights of type {', '.join(kinds)}"
    remedy = "start from the checkpoint that was quantised; load_in=4bit or 8bit quantises it while it is read"
    return [Fault(key, told, remedy)]


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for k in INNER if isinstance(part := config.get(k), dict)]


def _object(value: Any) -> dict[str, Any]:
    """A value of JSON where it is an object; else empty."""
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    """As `read_object`; empty where there is none, or it is not sound, which is a fault elsewhere."""
    try:
        return read_object("", path)
    except ConfigError:
        return {}


def _fault(key: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Fault(key, problem, remedy)])
