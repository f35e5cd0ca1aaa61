"""Safetensors files written one tensor at a time, and parameters put together from slices in several of them.

Our own writer, because the library's wants all tensors at once and hashes nothing; files are read by the library's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
ALIGNMENT = 64  # bytes at a multiple of which the tensors begin, so that kernels can use them where they are mapped
CHUNK = 1 << 24  # bytes hashed and written at a time


@dataclass(frozen=True)
class Spec:
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """A file as it should be found again: its size, and the hash of all its bytes."""

    bytes: int
    sha256: str


def write_tensors(
    path: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, torch.Tensor]], metadata: Mapping[str, str]
) -> Written:
    """Writes and flushes one safetensors file; one tensor is held at a time.

    tensors: on any device, in the order of `specs`, which says their dtypes and shapes. Raises ValueError where they
    differ, OSError where the disk does; the file is then incomplete.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:

        def put(data: bytes | memoryview) -> None:
            nonlocal size
            digest.update(data)
            rest = memoryview(data)
            while rest:  # an unbuffered write may be a short one
                rest = rest[file.write(rest) :]
            size += len(data)

        put(_header(specs, metadata))
        expected = iter(specs.items())
        for name, tensor in tensors:
            if (name, Spec(tensor.dtype, tuple(tensor.shape))) != next(expected, None):
                raise ValueError(f"{name}, {tensor.dtype} {tuple(tensor.shape)}, is not the tensor due in {path.name}")
            data = bytes_of(tensor)
            for start in range(0, len(data), CHUNK):
                put(data[start : start + CHUNK])
        if (missing := next(expected, None)) is not None:
            raise ValueError(f"{missing[0]} is missing in {path.name}")
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.num_bytes
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """What a file holds of the tensor."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Piece:
    path: Path
    start: int
    stop: int


class SlicedFiles:
    """Tensors whose flat ranges lie in several safetensors files, as the ranks of a run wrote them.

    Each file's metadata holds `slices`: JSON {name: {start, shape}} with the shape of the whole tensor.
    """

    def __init__(self, paths: Iterable[Path]):
        """Reads headers only. Raises ValueError where the slices do not make up whole tensors."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        for path in paths:
            self._add(path)
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            ends = [0, *(piece.stop for piece in pieces)]
            if [piece.start for piece in pieces] != ends[:-1] or ends[-1] != torch.Size(self.shapes[name]).numel():
                raise ValueError(f"{pieces[0].path.parent}: slices of {name} do not make up the whole tensor")

    def _add(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                slices = json.loads((file.metadata() or {})["slices"])
                for name, where in slices.items():
                    length, dtype = file.get_slice(name).get_shape()[0], DTYPES[file.get_slice(name).get_dtype()]
                    shape = tuple(where["shape"])
                    if (self.shapes.setdefault(name, shape), self._dtypes.setdefault(name, dtype)) != (shape, dtype):
                        raise ValueError(f"{path}: {name} has another shape or dtype than in the other files")
                    piece = _Piece(path, where["start"], where["start"] + length)
                    self._pieces.setdefault(name, []).append(piece)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: not a file of slices ({error})") from error

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, on CPU."""
        stop = torch.Size(self.shapes[name]).numel() if stop is None else stop
        out = torch.empty(stop - start, dtype=self._dtypes[name])
        for piece in self._pieces[name]:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                with safe_open(piece.path, framework="pt") as file:
                    part = file.get_slice(name)[first - piece.start : last - piece.start]
                out[first - start : last - start] = part
        return out
