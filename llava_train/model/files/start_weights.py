"""The weights of the checkpoint that adapters sit on, read one at a time under the names of transformers 5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llava_train.model.files.stored_tensors import StoredTensors
from llava_train.model.files.tensor_names import OLDER_MODULES, older_name


class StartWeights:
    """shapes: of all parameters, by module name. Raises ConfigError where a file is not readable."""

    def __init__(self, files: Sequence[Path]):
        self._stored = StoredTensors("model.init", files)
        self._keys = {module_name(key): key for key in self._stored.specs}
        self.shapes = {name: self._stored.specs[key].shape for name, key in self._keys.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._stored.read(self._keys[name])


def module_name(key: str) -> str:
    """Where transformers 5 puts a tensor of a checkpoint in either major's spelling."""
    module, older = OLDER_MODULES
    name = older_name(key)
    return name.replace(older, module, 1) if name.startswith(older) else name
