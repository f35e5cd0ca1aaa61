"""The tensors of a checkpoint folder, read one at a time: safetensors, or pickles that hold nothing but tensors."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llava_train.model.files.tensor_files import DTYPES, Spec
from llava_train.shared.errors import ConfigError, shortened
from llava_train.start_folder.files import pointer_fault, read_header, read_object
from llava_train.start_folder.find import INDEX, PICKLES, WEIGHTS, weight_files


class StoredTensors:
    """Specs of all tensors of some files; `read` opens a file anew each time, so that none stays in memory.

    key: the setting that named the folder, for errors. Raises ConfigError where a file cannot be read, holds anything
    but tensors, or repeats a key of another.
    """

    def __init__(self, key: str, paths: Iterable[Path]):
        self._key = key
        self.paths = tuple(paths)
        self.specs: dict[str, Spec] = {}
        self._file_of: dict[str, Path] = {}
        for path in self.paths:
            specs = self._safetensors_specs(path) if path.suffix == ".safetensors" else self._pickled_specs(path)
            if twice := sorted(specs.keys() & self.specs.keys()):
                raise ConfigError.one(key, f"{path} repeats {shortened(twice)}", "leave each tensor in one file")
            self.specs |= specs
            self._file_of |= dict.fromkeys(specs, path)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on CPU, backed by its file."""
        path = self._file_of[name]
        if path.suffix != ".safetensors":
            return self._unpickled(path)[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    def _safetensors_specs(self, path: Path) -> dict[str, Spec]:
        try:
            read_header(self._key, path)
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
                return {name: Spec(DTYPES[s.get_dtype()], tuple(s.get_shape())) for name, s in slices.items()}
        except (OSError, SafetensorError, KeyError) as error:
            raise ConfigError.one(self._key, f"{path} cannot be read: {error}", "copy it again, whole") from error

    def _pickled_specs(self, path: Path) -> dict[str, Spec]:
        return {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._unpickled(path).items()}

    def _unpickled(self, path: Path) -> dict[str, torch.Tensor]:
        """Mapped to memory, not read. Code in a pickle does not run."""
        try:
            if fault := pointer_fault(self._key, path):
                raise ConfigError([fault])
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            problem = f"{path} holds more than tensors; it was not unpickled: {_first_line(error)}"
            raise ConfigError.one(self._key, problem, "trust no such file; ask its author for safetensors") from error
        except (OSError, RuntimeError, EOFError) as error:
            problem = f"{path} cannot be read: {_first_line(error)}"
            raise ConfigError.one(self._key, problem, "give a whole file as torch.save writes it since 1.6") from error
        if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
            raise ConfigError.one(self._key, f"{path} is no mapping of names to tensors", "give a state dict")
        return content


def open_weights(key: str, folder: Path) -> StoredTensors:
    """The weights of a model folder, safetensors before pickles. Raises ConfigError."""
    if files := weight_files(folder, pickled=True):
        return StoredTensors(key, files)
    for index in (path for path in (folder / INDEX, folder / PICKLES[1]) if path.is_file()):
        read_object(key, index)  # says what is wrong with it
    raise ConfigError.one(key, f"{folder} holds no weights", f"it needs one of {', '.join((WEIGHTS, INDEX, *PICKLES))}")


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX, *PICKLES))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
