"""Streamed safetensors files equal the library's own, and slices make up the tensors that they were cut from."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from llava_train.model.files.tensor_files import SlicedFiles, Spec, file_sha256, write_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(7),
    "transposed": torch.arange(6, dtype=torch.int32).reshape(2, 3).T,
}


def specs(tensors):
    return {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_slice(path, start, values, shape=(2, 5)):
    tensors = {"w": values}
    return write_tensors(
        path, specs(tensors), tensors.items(), {"slices": json.dumps({"w": {"start": start, "shape": shape}})}
    )


def test_the_library_reads_what_was_written(tmp_path):
    path = tmp_path / "x.safetensors"
    written = write_tensors(path, specs(TENSORS), TENSORS.items(), {"key": "value"})
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert written.bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256(path)


@pytest.mark.parametrize("wrong", ["order", "shape", "missing", "more"])
def test_tensors_that_are_not_the_announced_ones_are_refused(tmp_path, wrong):
    items = list(TENSORS.items())
    announced = specs(TENSORS)
    if wrong == "order":
        items.reverse()
    elif wrong == "shape":
        items[0] = ("a", torch.zeros(3, 2))
    elif wrong == "missing":
        items.pop()
    else:
        announced.pop("transposed")
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        write_tensors(tmp_path / "x.safetensors", announced, items, {})


def test_any_range_is_read_across_the_slices(tmp_path):
    whole = torch.arange(10.0)
    cuts = (0, 3, 4, 10)
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, start, stop in zip(reversed(paths), cuts[:-1], cuts[1:], strict=True):
        write_slice(path, start, whole[start:stop])
    files = SlicedFiles(paths)
    assert files.shapes == {"w": (2, 5)}
    for start in range(10):
        for stop in range(start, 11):
            assert torch.equal(files.read("w", start, stop), whole[start:stop])
    assert torch.equal(files.read("w"), whole)


@pytest.mark.parametrize("pieces", [[(0, 5)], [(0, 5), (6, 4)], [(0, 5), (4, 6)], [(1, 9)]])
def test_slices_with_gaps_or_overlaps_are_refused(tmp_path, pieces):
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(pieces))]
    for path, (start, length) in zip(paths, pieces, strict=True):
        write_slice(path, start, torch.zeros(length))
    with pytest.raises(ValueError, match="do not make up"):
        SlicedFiles(paths)


def test_files_that_are_no_slices_are_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    write_tensors(tmp_path / "whole.safetensors", specs(TENSORS), TENSORS.items(), {})
    for name in ("cut", "whole"):
        with pytest.raises(ValueError, match=f"{name}.safetensors: not a file of slices"):
            SlicedFiles([tmp_path / f"{name}.safetensors"])
