"""Which stored tensor fills which parameter of a model, when several folders make up one model.

A part (tower, projector, newline, language model) comes whole from the first source that holds any of it. Whatever
does not fit is a fault, and all faults are found at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from llava_train.model.convert.original import BUFFERS, OriginalKind, hf_name, lora_scale
from llava_train.model.files.stored_tensors import StoredTensors
from llava_train.model.prepare.trained_parts import Part, part_of
from llava_train.shared.errors import Fault, shortened
from llava_train.start_folder.files import read_object
from llava_train.start_folder.find import ADAPTER_CONFIG, ADAPTER_FILES

Shape = tuple[int, ...]
Group = Part | Literal["image_newline"]

NEWLINE, HEAD, EMBEDDING = "model.image_newline", "lm_head.weight", "model.language_model.embed_tokens.weight"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
PEFT_PREFIX = "base_model.model."
_ADAPTER_KEY = re.compile(r"(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class TensorFolder:
    """Stored tensors under the model's names. key: the setting that named their folder. label: what they are."""

    key: str
    label: str
    stored: StoredTensors
    names: dict[str, str]  # of the model -> in the file
    unknown: tuple[str, ...]  # in the file
    num_buffers: int

    def shape(self, name: str) -> Shape:
        return self.stored.specs[self.names[name]].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.stored.specs[self.names[name]].dtype

    def read(self, name: str) -> torch.Tensor:
        return self.stored.read(self.names[name])


class LowRank(NamedTuple):
    """What LoRA adds to a weight: scale * B @ A, in fp32. down, up: keys of A [r, in] and B [out, r]."""

    stored: StoredTensors
    down: str
    up: str
    scale: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        product = self.stored.read(self.up).float() @ self.stored.read(self.down).float()
        return (weight.float() + product * self.scale).to(weight.dtype)


def group_of(name: str) -> Group:
    """The part whose tensors come from one source."""
    return "image_newline" if name == NEWLINE else part_of(name)


def open_tensor_folder(
    key: str,
    label: str,
    stored: StoredTensors,
    kind: OriginalKind | Literal["vision_tower"],
    shapes: Mapping[str, Shape],
    dropped: str = "^$",
) -> TensorFolder:
    """Finds the model's names for all keys. dropped: pattern of keys that the model leaves out, as is known of them."""
    names: dict[str, str] = {}
    unknown, num_buffers = [], 0
    for stored_name in stored.specs:
        plain = stored_name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
        name = hf_name(kind, plain)
        if BUFFERS.fullmatch(plain):
            num_buffers += 1
        elif name in names or not (name in shapes or name == HEAD):
            if not re.search(dropped, plain):
                unknown.append(stored_name)
        else:
            names[name] = stored_name
    return TensorFolder(key, label, stored, names, tuple(unknown), num_buffers)


def choose(shapes: Mapping[str, Shape], sources: Sequence[TensorFolder]) -> tuple[dict[str, TensorFolder], list[Fault]]:
    """The source of each name, and every fault: keys unknown, missing, of another shape or no number of a model."""
    faults = [
        _listed(source, "unknown key", source.unknown, "the converter would lose them; use the folder as it was saved")
        for source in sources
        if source.unknown
    ]
    chosen: dict[str, TensorFolder] = {}
    for group in dict.fromkeys(map(group_of, shapes)):
        wanted = [name for name in shapes if group_of(name) == group]
        source = next((s for s in sources if any(group_of(name) == group for name in s.names)), None)
        if source is None:
            continue  # the caller knows what to say of a whole part
        missing = [name for name in wanted if name not in source.names]
        held = [name for name in wanted if name in source.names]
        chosen |= dict.fromkeys(held, source)
        problems = {
            "missing key": missing,
            "wrongly shaped key": [
                f"{source.names[name]} {list(source.shape(name))}, not {list(shapes[name])}"
                for name in held
                if source.shape(name) != shapes[name]
            ],
            "key of another dtype": [
                f"{source.names[name]} {source.dtype(name)}" for name in held if source.dtype(name) not in FLOATS
            ],
        }
        remedy = "use a whole checkpoint with the config.json that belongs to it"
        faults += [_listed(source, what, names, remedy) for what, names in problems.items() if names]
    return chosen, faults


def check_head(chosen: Mapping[str, TensorFolder]) -> list[Fault]:
    """A tied model may store its head besides, if that is the embedding."""
    source = chosen.get(EMBEDDING)
    if source is None or HEAD not in source.names or torch.equal(source.read(EMBEDDING), source.read(HEAD)):
        return []
    problem = f"{source.label}: {source.names[HEAD]} differs from the embedding, and config.json ties them"
    return [Fault(source.key, problem, "set tie_word_embeddings to false in config.json if the head was trained")]


def open_adapter(folder: Path, chosen: Mapping[str, TensorFolder]) -> tuple[dict[str, LowRank], list[Fault]]:
    """The adapter of `folder`, weight by weight. Raises ConfigError where its config or file cannot be read."""
    config = read_object("original", folder / ADAPTER_CONFIG)
    scale = lora_scale(config)
    files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if len(files) != 1:
        problem = f"{folder} holds {len(files)} adapter files"
        return {}, [Fault("original", problem, f"keep one of {', '.join(ADAPTER_FILES)}")]
    stored = StoredTensors("original", files)
    pairs: dict[str, dict[str, str]] = {}
    unknown, misfits = [], []
    for key in stored.specs:
        match = _ADAPTER_KEY.fullmatch(key.removeprefix(PEFT_PREFIX))
        name = hf_name("full", f"{match[1]}.weight") if match else ""
        if match and name in chosen:
            pairs.setdefault(name, {})[match[2]] = key
        else:
            unknown.append(key)
    low_rank: dict[str, LowRank] = {}
    for name, pair in pairs.items():
        shapes = {letter: stored.specs[key].shape for letter, key in pair.items()}
        rows, columns = chosen[name].shape(name)
        if shapes == {"A": (config["r"], columns), "B": (rows, config["r"])}:
            low_rank[name] = LowRank(stored, pair["A"], pair["B"], scale)
        else:
            misfits += [f"{key} {list(stored.specs[key].shape)}" for key in pair.values()]
    problems = {"unknown key": unknown, "wrongly shaped or unpaired key": misfits}
    source = TensorFolder("original", str(files[0]), stored, {}, (), 0)
    faults = [_listed(source, what, keys, "use the base it was trained on") for what, keys in problems.items() if keys]
    if not stored.specs:
        faults.append(Fault("original", f"{files[0]} is empty", "copy the folder again"))
    return low_rank, faults


def _listed(source: TensorFolder, what: str, names: Sequence[str], remedy: str) -> Fault:
    plural = "" if len(names) == 1 else "s"
    return Fault(source.key, f"{source.label}: {len(names)} {what}{plural}: {shortened(names)}", remedy)
