"""Loading a checkpoint, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llava_train.config.schema import ModelConfig
from llava_train.model.loading.lazy_weights import load_unread, read_weight, unread
from llava_train.model.loading.load_model import DTYPES, load_model
from llava_train.model.loading.strict_load import load_strictly
from llava_train.shared.errors import ConfigError


@pytest.mark.parametrize("load", [load_strictly, load_unread])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("image_newline"), "missing: model.image_newline"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda w: w.update(image_newline=torch.zeros(3)), "of another shape: model.image_newline"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_keys_that_do_not_fit_are_named(tiny_folder, tmp_path, change, told, load):
    folder = copy_of(tiny_folder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=told):
        load_model(ModelConfig(str(folder), "", "", "auto"), "fp32", tmp_path, load=load)


@pytest.mark.parametrize("load", [load_strictly, load_unread])
def test_pickled_weights_are_not_read(tiny_folder, tmp_path, load):
    folder = copy_of(tiny_folder, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(ModelConfig(str(folder), "", "", "auto"), "fp32", tmp_path, load=load)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_left_in_their_files_are_those_read_at_once(tiny_folder, tmp_path, precision):
    init = ModelConfig(str(tiny_folder), "", "", "auto")
    ours, whole = (load_model(init, precision, tmp_path, load=load).model for load in (load_unread, load_strictly))
    left = unread(ours.parameters())
    assert len(left) == len(list(whole.parameters()))
    assert {parameter.untyped_storage().nbytes() for parameter in left} == {DTYPES[precision].itemsize}
    for parameter in left:
        read_weight(parameter)
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
        torch.testing.assert_close(dict(kind(ours)), dict(kind(whole)), rtol=0, atol=0)
    assert ours.config.to_dict() == whole.config.to_dict()


def test_tiny_is_made_once_and_is_the_same_everywhere(tmp_path):
    tiny = ModelConfig("tiny", "", "", "auto")
    first, again = (load_model(tiny, "fp32", tmp_path / "cache").model for _ in range(2))
    elsewhere = load_model(tiny, "fp32", tmp_path / "other").model
    torch.testing.assert_close(dict(first.state_dict()), dict(again.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(dict(first.state_dict()), dict(elsewhere.state_dict()), rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
