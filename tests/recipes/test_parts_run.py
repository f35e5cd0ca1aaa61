"""A run from a language model folder and a vision tower folder, by the command line: one step of each family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from part_folders import FAMILIES, write_parts
from PIL import Image
from safetensors.torch import load_file

from llava_train.cli.main import main

FAST = (
    "qwen3",
    "vicuna",
    "mistral",
)  # the others differ from these in ways that tests/model/loading/test_join_parts.py and tests/compat cover


def command(root: Path, name: str) -> list[str]:
    """The last stage of the tiny recipe, one step on captioned images, which every template takes."""
    model = write_parts(root / "parts", name)
    records = []
    for i, size in enumerate([(40, 30), (90, 50), (30, 80), (64, 64)]):
        Image.effect_noise(size, 80).convert("RGB").save(root / f"{i}.png")
        talk = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": f"picture {i}"}]
        records.append({"id": i, "image": f"{i}.png", "conversations": talk})
    (root / "own.json").write_text(json.dumps(records))
    starts = ["model.init=", f"model.language_model={model.language_model}", f"model.vision_tower={model.vision_tower}"]
    data = [f"data.file={root}/own.json", f"data.root={root}", f"run.dir={root}/run"]
    stage = ["~stages.projector", "stages.onevision.max_steps=1", "stages.onevision.zero.level=0"]
    return ["+recipe=tiny", *starts, *data, *stage, f"stages.onevision.template={FAMILIES[name].template}"]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_one_step_from_parts(tmp_path, name, capsys):
    words = command(tmp_path, name)
    assert main(["check", *words]) == 0, capsys.readouterr().err
    assert main(words) == 0, capsys.readouterr().err
    [line] = [json.loads(line) for line in (tmp_path / "run/onevision/metrics.jsonl").read_text().splitlines()]
    assert line["num_samples"] == 4
    assert 0 < line["loss"] < 100
    weights = load_file(tmp_path / "run/onevision/hf/model.safetensors")
    embedding = weights["language_model.model.embed_tokens.weight"]
    assert len(embedding) == FAMILIES[name].joined_rows
    assert all(tensor.isfinite().all() for tensor in weights.values())
    before = load_file(tmp_path / "parts/lm/model.safetensors")
    changed = [
        key
        for key, tensor in before.items()
        if not torch.equal(weights[f"language_model.{key}"][: len(tensor)], tensor)
    ]
    assert len(changed) == len(before), sorted(before.keys() - set(changed))


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_template_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, verb, capsys):
    assert main([verb, *command(tmp_path, "vicuna"), "stages.onevision.template=qwen"]) == 2
    told = capsys.readouterr().err
    assert "stages.onevision.template: qwen needs <|im_start|> and <|im_end|>" in told
    assert "-> set stages.onevision.template=plain or vicuna," in told
    assert not (tmp_path / "run").exists()
