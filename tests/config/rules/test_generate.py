"""Each rule of `generate`: the setting that breaks it, the key that is named, and a remedy."""

from __future__ import annotations

import pytest
from safetensors.numpy import save_file

from llava_train.config.load import load_verb
from llava_train.config.rules import generate
from llava_train.config.schema import GenerateConfig
from llava_train.shared.errors import ConfigError

CASES = [
    (["model.init="], "model.init", "DIR_OR_HUB_NAME"),
    (["prompt= "], "prompt", "prompt=What is shown?"),
    (["chat=true"], "chat", "one of"),
    (["videos=[b.mp4]", "video=a.mp4"], "video", "videos=[...] alone"),
    (["out=a.jsonl"], "out", "set file="),
    (["batch_size=2"], "batch_size", "set file="),
    (["on_error=skip"], "on_error", "set file="),
    (["root=x"], "root", "set file="),
    (["prompt=", "file=absent.jsonl", "out=a.jsonl"], "file", "a prompt per record"),
    (["prompt=", "file=here.txt", "out=a.jsonl"], "file", "a prompt per record"),
    (["prompt=", "file=here.jsonl"], "out", "out=ANSWERS.jsonl"),
    (["prompt=", "file=here.jsonl", "out=a.txt"], "out", "out=ANSWERS.jsonl"),
    (["prompt=", "file=here.jsonl", "out=a.jsonl", "images=[a.png]"], "images", "leave images out"),
    (["prompt=", "file=here.jsonl", "out=a.jsonl", "batch_size=0"], "batch_size", ">= 1"),
    (["adapter=absent"], "adapter", "STAGE/adapter"),
    (["max_new_tokens=0"], "max_new_tokens", ">= 1"),
    (["min_new_tokens=-1"], "min_new_tokens", ">= 0"),
    (["min_new_tokens=9", "max_new_tokens=8"], "min_new_tokens", "max_new_tokens"),
    (["seed=-1"], "seed", ">= 0"),
    (["do_sample=true", "temperature=0"], "temperature", "do_sample=false"),
    (["do_sample=true", "top_p=0.0"], "top_p", "> 0"),
    (["do_sample=true", "top_p=1.1"], "top_p", "<= 1"),
    (["do_sample=true", "top_k=-1"], "top_k", "0 = all tokens"),
    (["repetition_penalty=0"], "repetition_penalty", "> 0"),
    (["num_beams=0"], "num_beams", ">= 1"),
    (["temperature=0.7"], "temperature", "do_sample=true"),
    (["top_p=0.9", "do_sample=false"], "top_p", "do_sample=true"),
    (["prompt=", "chat=true", "num_beams=2"], "num_beams", "leave num_beams out"),
    (["temperature=warm", "do_sample=true"], "temperature", "a number or checkpoint"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    (tmp_path / "here.txt").touch()


@pytest.mark.parametrize(("words", "key", "remedy"), CASES)
def test_a_broken_rule_names_its_key_and_remedy(words, key, remedy):
    with pytest.raises(ConfigError) as caught:
        load_verb(GenerateConfig, ["model.init=m", "prompt=?", *words])
    assert [fault.key for fault in caught.value.faults] == [key]
    assert remedy in caught.value.faults[0].remedy


def test_every_bound_has_a_case():
    bounds = {(name, f"{comparison} {bound}") for name, comparison, bound in generate.BOUNDS}
    assert bounds
    for name, allowed in bounds - {("temperature", "> 0"), ("top_k", ">= 0")}:
        assert any(key == name and allowed in remedy for _, key, remedy in CASES), name


def test_options_are_read_as_transformers_names_them():
    words = ["do_sample=true", "temperature=0.7", "top_k=5", "num_beams=2", "repetition_penalty=1.1"]
    config = load_verb(GenerateConfig, ["model.init=m", "prompt=?", *words])
    given = (config.do_sample, config.temperature, config.top_k, config.num_beams, config.repetition_penalty)
    assert given == (True, 0.7, 5, 2, 1.1)
    assert (config.top_p, config.min_new_tokens) == ("checkpoint", "checkpoint")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("adapter_model.safetensors", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("adapter_model.safetensors", "", "is cut off"),
        ("adapter_config.json", "{", "is no JSON"),
    ],
)
def test_an_adapter_that_is_not_whole_is_told(tmp_path, name, content, told):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({}, tmp_path / "adapter_model.safetensors")
    words = ["model.init=m", "prompt=?", f"adapter={tmp_path}"]
    assert load_verb(GenerateConfig, words).adapter
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"adapter: {tmp_path / name} {told}"):
        load_verb(GenerateConfig, words)
