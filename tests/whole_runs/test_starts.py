"""Every verb gives the same verdict on a start: those of the table are refused before anything loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import runs
import torch
from part_folders import write_parts
from safetensors.torch import load_file, save_file
from start_table import INDEX, PARTS, STARTS, WEIGHTS, Row, shard

from llava_train.cli.main import main
from llava_train.config.load import load
from llava_train.config.schema import GenerateModel, ModelConfig
from llava_train.model.files.start_weights import StartWeights
from llava_train.model.loading.lazy_weights import load_unread, read_weight, unread
from llava_train.model.loading.load_model import load_checkpoint, load_model
from llava_train.model.loading.strict_load import load_strictly
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.model.start.read_model import model_dims, read_model
from llava_train.model.start.start_faults import model_faults
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import ConfigError
from llava_train.start_folder.find import stamps, weight_files
from llava_train.train.checkpoint.writer import Saver

# one of each kind goes through real processes
COMMANDS = (
    *(
        "adapter beside",
        "bitsandbytes",
        "gptq",
        "awq, not said",
        "quantised by its config alone",
        "more tokens than rows",
    ),
    *("another type, with code", "git lfs pointer", "cut off", "misses a shard", "pickled alone", "no weights"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture(scope="module")
def sound_parts(tmp_path_factory) -> ModelConfig:
    return write_parts(tmp_path_factory.mktemp("parts"), "qwen2")


@pytest.fixture(scope="module")
def config():
    return load(["+recipe=tiny"])


def verdicts(model: ModelConfig, config, cache: Path) -> dict[str, list[str]]:
    """What each verb's own entry says of the start: problems and remedies."""
    config.model = model
    entries = {
        "preview": lambda: read_model(model),
        "plan": lambda: model_dims(model),
        "ZeRO 0 to 2": lambda: load_model(model, "fp32", cache, load=load_strictly),
        "ZeRO 3": lambda: load_model(model, "fp32", cache, load=load_unread),
    }
    if model.init:
        entries |= {
            "generate and evaluate": lambda: load_checkpoint(GenerateModel(model.init), "auto"),
            "quantised": lambda: load_model(model, "fp32", cache, load_in="8bit"),
        }
    found = {"check": list(map(str, model_faults(config)))}
    for verb, entry in entries.items():
        with pytest.raises(ConfigError) as caught:
            entry()
        found[verb] = list(map(str, caught.value.faults))
    return found


def judge(found: dict[str, list[str]], key: str, row: Row) -> None:
    for verb, faults in found.items():
        assert faults == found["check"], verb
    [told] = found["check"]
    problem, _, remedy = told.partition("\n    -> ")
    assert problem.startswith(f"{key}: ")
    assert row.told in problem
    assert row.remedy in remedy


@pytest.mark.parametrize("name", STARTS)
def test_all_verbs_refuse_a_start_alike(sound, tmp_path, config, name):
    folder = shutil.copytree(sound, tmp_path / "start")
    STARTS[name].spoil(folder)
    judge(verdicts(ModelConfig(str(folder), "", "", "auto"), config, tmp_path), "model.init", STARTS[name])


@pytest.mark.parametrize("name", PARTS)
def test_all_verbs_refuse_a_part_alike(sound_parts, tmp_path, config, name):
    shutil.copytree(Path(sound_parts.language_model).parent, tmp_path / "parts")
    model = ModelConfig("", str(tmp_path / "parts/lm"), str(tmp_path / "parts/tower"), "auto")
    part, row = PARTS[name]
    row.spoil(Path(getattr(model, part)))
    judge(verdicts(model, config, tmp_path), f"model.{part}", row)


@pytest.mark.parametrize("kind", ["model.safetensors and shards", "shards and a stray one", "a stray one"])
def test_two_sets_of_weights_are_one_to_every_reader(sound, tmp_path, config, kind):
    """model.safetensors counts, else what the index names; what else lies there is no part of the checkpoint."""
    folder = shutil.copytree(sound, tmp_path / "start")
    tensors = load_file(folder / WEIGHTS)
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    if kind == "a stray one":
        norm = "language_model.model.norm.weight"
        save_file({norm: other[norm]}, folder / "model-00003-of-00004.safetensors", {"format": "pt"})
    elif kind == "shards and a stray one":
        shard(folder)
        save_file(other, folder / "model-00003-of-00003.safetensors", {"format": "pt"})
    else:
        save_file(other, folder / WEIGHTS, {"format": "pt"})
        shard(folder)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        assert (folder / INDEX).is_file()
    model = ModelConfig(str(folder), "", "", "auto")
    config.model = model
    assert model_faults(config) == []
    whole, left = (load_model(model, "fp32", tmp_path, load=load).model for load in (load_strictly, load_unread))
    for parameter in unread(left.parameters()):
        read_weight(parameter)
    below = StartWeights(weight_files(folder))  # of adapters, when they are merged
    recorded = Saver.hashes(SimpleNamespace(ranks=Ranks(0, 1, torch.device("cpu"))), folder)  # in the manifest
    assert [folder / file for file in recorded] == weight_files(folder)
    expected = load_model(ModelConfig(str(sound), "", "", "auto"), "fp32", tmp_path).model.state_dict()
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert torch.equal(dict(left.named_parameters())[name], expected[name]), name
        assert torch.equal(below.read(name), expected[name]), name


def test_a_hub_name_that_is_cached_is_read_without_a_look_at_the_network(sound, tmp_path, config, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", None)
    place = tmp_path / "models--org--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("abc")
    folder = shutil.copytree(sound, place / "snapshots/abc")
    config.model = model = ModelConfig("org/tiny", "", "", "auto")
    assert model_faults(config) == []
    assert read_model(model)[0].tile_size == model_dims(model).tile_size == 28
    for way in (load_strictly, load_unread):
        loaded = load_model(model, "fp32", tmp_path, load=way)
        assert (loaded.folder, loaded.sources["projector"]) == (folder, "org/tiny")
    assert [name for name, *_ in stamps(model.init)] == [WEIGHTS]
    STARTS["cut off"].spoil(folder)
    judge(verdicts(model, config, tmp_path), "model.init", STARTS["cut off"])


@pytest.mark.parametrize("name", COMMANDS)
def test_training_ends_at_once_with_code_2(sound, tmp_path, name):
    folder = shutil.copytree(sound, tmp_path / "start")
    STARTS[name].spoil(folder)
    out = runs.finish(runs.start(1, *runs.training(tmp_path / "run", f"model.init={folder}")), code=2)
    assert "1 error in the configuration" in out
    assert STARTS[name].told in out
    assert "Traceback" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_no_code_of_a_checkpoint_runs_and_nobody_is_asked(sound, tmp_path, verb, monkeypatch, capfd):
    folder = shutil.copytree(sound, tmp_path / "start")
    row = STARTS["another type, with code"]
    row.spoil(folder)
    (folder / "configuration_x.py").write_text("print('CODE OF THE CHECKPOINT')")
    asked = list[str]()
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    words = {"generate": ["prompt=hi"], "evaluate": [f"data.file={runs.TINY}/tiny.json", f"out={tmp_path}/out"]}
    assert main([verb, f"model.init={folder}", *words[verb]]) == 2
    out, err = capfd.readouterr()
    assert row.told in err
    assert "CODE" not in out + err
    assert not asked
    assert not (tmp_path / "out").exists()  # it would bind the next call, by the weights as they were
