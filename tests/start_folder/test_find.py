"""Which files of a folder are a model's weights, and where the folder of a hub name lies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers.modeling_utils import _get_resolved_checkpoint_files

from llava_train.shared.errors import ConfigError
from llava_train.start_folder.find import (
    INDEX,
    PICKLES,
    WEIGHTS,
    folder_here,
    has_all_weights,
    is_hub_name,
    local_folder,
    weight_files,
)
from llava_train.start_folder.read import Start, read_start

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name == INDEX:
            (folder / name).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True)), "metadata": {}}))
        else:
            save_file({name: np.zeros(2, np.float32)}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((WEIGHTS,), (WEIGHTS,)),
        ((WEIGHTS, INDEX, *SHARDS), (WEIGHTS,)),
        ((WEIGHTS, SHARDS[1]), (WEIGHTS,)),
        ((INDEX, *SHARDS, "model-00003-of-00003.safetensors", "consolidated.safetensors"), SHARDS),
    ],
)
def test_the_weights_are_the_files_that_transformers_reads(tmp_path, names, expected):
    folder = write(tmp_path, *names)
    theirs, _ = _get_resolved_checkpoint_files(str(folder), None, None, True, None, False)
    assert [str(path) for path in weight_files(folder)] == theirs == [str(folder / name) for name in expected]


def test_pickles_are_weights_where_they_are_wanted_and_nothing_else_is_there(tmp_path):
    (tmp_path / PICKLES[0]).write_bytes(b"")
    assert weight_files(tmp_path) == []
    assert weight_files(tmp_path, pickled=True) == [tmp_path / PICKLES[0]]
    assert weight_files(write(tmp_path, WEIGHTS), pickled=True) == [tmp_path / WEIGHTS]


def test_all_that_is_wrong_with_a_folder_is_told_at_once(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "tokenizer.json").write_text("{")
    write(tmp_path, INDEX, SHARDS[0])
    _, faults = read_start("model.init", "here", tmp_path)
    told = [fault.problem for fault in faults]
    assert [line.rpartition("/")[2].split(":")[0] for line in told] == [
        "config.json holds no JSON object",
        "tokenizer.json is no JSON",
        f"here misses {SHARDS[1]}, which {INDEX} names",
    ]


def test_a_folder_that_is_not_there_says_what_to_run_first(tmp_path):
    gone = tmp_path / "mid/hf"
    [fault] = read_start("model.init", "runs/mid/hf", gone)[1]
    assert (fault.key, fault.problem) == ("model.init", "no folder runs/mid/hf")
    assert "run the recipe" in fault.remedy
    [fault] = read_start("model.vision_tower", "gone", gone)[1]
    assert fault.remedy == "put it there, or set model.vision_tower=DIR_OR_HUB_NAME"


def test_a_file_and_an_address_are_no_folders(tmp_path):
    (tmp_path / "model.safetensors").touch()
    [fault] = read_start("model.init", "base/model.safetensors", tmp_path / "model.safetensors")[1]
    assert (fault.problem, fault.remedy) == (
        "base/model.safetensors is a file, not a folder",
        f"name the folder that it lies in: model.init={tmp_path}",
    )
    [fault] = read_start("model.init", "https://hub.example/org/name", Path("https://hub.example/org/name"))[1]
    assert fault.remedy.endswith("model.init=org/name")


def test_what_stands_in_a_tokenizer_that_is_not_due_is_passed_over(tmp_path):
    content = {"model": {"vocab": {"a": 0, "b": "1"}}, "added_tokens": [{"id": 7}, {"content": "<x>", "id": 2}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"y": {}, "3": "c"}}))
    start = Start("model.init", "here", tmp_path)
    assert (start.num_tokens(), start.added_tokens, start.token_id("<x>")) == (3, {"<x>"}, 2)


def test_a_hub_name_is_an_organisation_and_a_name_not_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert is_hub_name("Qwen/Qwen2-7B-Instruct")
    for name in ("runs/mine", "gpt2", "./a/b", "/a/b", "../b", "a/b/c", "a b/c"):
        assert not is_hub_name(name)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub cache with the whole of org/whole and the config of org/part, on a machine that reaches no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("whole", "part"):
        place = tmp_path / f"models--org--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text("abc")
        snapshot = write(place / "snapshots/abc", *([WEIGHTS] if name == "whole" else []))
        (snapshot / "config.json").write_text("{}")
    return tmp_path


def test_a_hub_name_that_is_cached_needs_no_network(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    folder = cache / "models--org--whole/snapshots/abc"
    assert folder_here("org/whole") == local_folder("model.init", "org/whole", weights=True) == folder
    part = folder_here("org/part")
    assert not has_all_weights(part)
    assert local_folder("model.init", "org/part", weights=False) == part
    assert folder_here("org/none") is None


@pytest.mark.parametrize("name", ["org/none", "org/part"])
def test_a_hub_name_that_is_not_whole_here_fails_at_once_without_network(cache, name):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"{name} is not whole on this machine") as caught:
        local_folder("model.init", name, weights=True)
    assert time.monotonic() - began < 10
    assert "set model.init=DIR" in str(caught.value)


def test_the_reader_loads_no_heavy_library():
    code = (
        "import sys, llava_train.start_folder.read, llava_train.model.start.start_faults\n"
        "print({'torch', 'transformers', 'huggingface_hub'} & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
