"""Whether a run can start from its folders, told from their JSON files before anything loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from llava_train.cli.check import load_checked
from llava_train.family.base import LANGUAGE_MODELS
from llava_train.family.onevision.family import TOWERS
from llava_train.family.registry import tower_fault
from llava_train.model.start.start_faults import language_model_fault
from llava_train.shared.errors import ConfigError
from llava_train.text.named_templates import template_fault

CHATML, SENTENCEPIECE = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<unk>", "<s>", "</s>"]


def test_types_that_are_known_to_work_are_taken():
    assert not any(language_model_fault("lm", {"model_type": kind}) for kind in LANGUAGE_MODELS)
    assert not any(tower_fault("tower", {"model_type": kind}) for kind in TOWERS)


@pytest.mark.parametrize(
    ("config", "problem", "remedy"),
    [
        ({"model_type": "bert"}, "lm holds a bert model", "qwen2, qwen3, llama, mistral"),
        ({}, "lm holds a None model", "qwen2, qwen3, llama, mistral"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixtral model, a mixture of experts", "qwen2, qwen3"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "a qwen3_moe model, a mixture of experts", "qwen2, qwen3"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "which is no language model alone", "qwen2, qwen3"),
        ({"model_type": "llava_onevision", "vision_config": {}}, "vision tower and all", "model.init=lm"),
    ],
    ids=lambda value: value.get("model_type", "none") if isinstance(value, dict) else "",
)
def test_other_language_models_are_refused_by_name(config, problem, remedy):
    fault = language_model_fault("lm", config)
    assert fault.key == "model.language_model"
    assert problem in fault.problem
    assert remedy in fault.remedy


@pytest.mark.parametrize(
    ("kind", "problem", "remedy"),
    [
        ("siglip2", "NaFlex", "google/siglip2-so400m-patch14-384"),
        ("siglip2_vision_model", "NaFlex", "google/siglip2-so400m-patch14-384"),
        ("clip", "the tower of LLaVA-1.5 and LLaVA-NeXT", "google/siglip-so400m-patch14-384"),
        ("clip_vision_model", "the tower of LLaVA-1.5 and LLaVA-NeXT", "google/siglip-so400m-patch14-384"),
        ("dinov2", "tower holds a dinov2 model", "google/siglip-so400m-patch14-384"),
    ],
)
def test_other_towers_are_refused_by_name(kind, problem, remedy):
    fault = tower_fault("tower", {"model_type": kind})
    assert fault.key == "model.vision_tower"
    assert problem in fault.problem
    assert remedy in fault.remedy


def test_a_template_is_refused_with_those_that_fit():
    assert template_fault("s", "qwen", CHATML) is None
    assert template_fault("s", "vicuna", SENTENCEPIECE) is None
    assert template_fault("s", "plain", []) is None
    fault = template_fault("s", "qwen", SENTENCEPIECE)
    assert fault.key == "stages.s.template"
    assert "qwen needs <|im_start|> and <|im_end|>" in fault.problem
    assert fault.remedy.startswith("set stages.s.template=plain or vicuna,")
    assert template_fault("s", "vicuna", CHATML).remedy.startswith("set stages.s.template=plain or qwen,")
    assert template_fault("s", "vicuna", []).remedy.startswith("set stages.s.template=plain,")


@pytest.fixture
def start(tmp_path) -> list[str]:
    """A run of the tiny recipe from two folders without sound weights: only JSON may be read."""
    write(tmp_path / "lm", {"model_type": "qwen2"}, CHATML)
    write(tmp_path / "tower", {"model_type": "siglip"}, [])
    return [
        "+recipe=tiny",
        "model.init=",
        f"model.language_model={tmp_path}/lm",
        f"model.vision_tower={tmp_path}/tower",
    ]


def write(folder: Path, config: dict, tokens: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({}, folder / "model.safetensors")
    added = [{"id": i, "content": text} for i, text in enumerate(tokens)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))


def faults(words: list[str]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_checked(words)
    return {fault.key: fault.remedy for fault in caught.value.faults}


def test_check_tells_all_faults_of_a_start_with_the_others(start, tmp_path):
    load_checked(start)
    write(tmp_path / "lm", {"model_type": "mixtral"}, SENTENCEPIECE)
    write(tmp_path / "tower", {"model_type": "siglip2"}, [])
    assert list(faults([*start, "stages.projector.template=plain", "log.every=0"])) == [
        "log.every",
        "model.language_model",
        "model.vision_tower",
        "stages.onevision.template",
    ]


def test_tokens_of_either_tokenizer_file_count(start, tmp_path):
    write(tmp_path / "lm", {"model_type": "qwen2"}, CHATML[:1])
    assert set(faults(start)) == {"stages.projector.template", "stages.onevision.template"}
    later = {"added_tokens_decoder": {str(i): {"content": text} for i, text in enumerate(CHATML)}}
    (tmp_path / "lm" / "tokenizer_config.json").write_text(json.dumps(later))
    load_checked(start)
    (tmp_path / "lm" / "tokenizer.json").rename(tmp_path / "lm" / "tokenizer.model")
    load_checked(start)  # nothing to judge by: told once the tokenizer is loaded


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": 512}, 512),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True}, 512),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False}, None),
        ({"model_type": "llama"}, None),
    ],
)
@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_a_sample_longer_than_the_sliding_window_is_refused(start, tmp_path, config, window, as_checkpoint):
    write(
        tmp_path / "lm", {"model_type": "llava_onevision", "text_config": config} if as_checkpoint else config, CHATML
    )
    words = [
        *start,
        f"model.init={tmp_path}/lm" if as_checkpoint else "model.init=",
        "stages.onevision.max_length=8192",
    ]
    if window is None:
        load_checked(words)
        return
    found = faults(words)
    assert f"set stages.onevision.max_length={window}," in found["stages.onevision.max_length"]
    assert ("stages.projector.max_length" in found) == (window == 512)  # 1024 by the recipe
