"""The lines that a card and the end of a run print are lines that run."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from llava_train.family.onevision.family import OneVision
from llava_train.model.hf_folder.card import render_card
from llava_train.model.hf_folder.usage_lines import (
    NOT_QUANTISED,
    four_bit_lines,
    pipeline_lines,
    plain_lines,
    processor_lines,
)
from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny, tiny_config, tiny_model
from llava_train.model.prepare.trained_parts import part_of

IMAGES = sorted((Path(__file__).parents[3] / "data/tiny/images").iterdir())
ALL = [pipeline_lines, *(partial(lines, OneVision()) for lines in (plain_lines, processor_lines, four_bit_lines))]


def test_plain_lines_answer(tmp_path, capsys):
    folder = make_tiny(tmp_path / "it's")
    exec(plain_lines(OneVision(), str(folder), str(IMAGES[0]), 'what "is" it?'), {})
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("lines", ALL)
def test_lines_are_python_whatever_the_names(lines):
    compile(lines("it's a {folder}", 'a"b.png', "what's {this}?"), "lines", "exec")


def test_a_card_shows_all():
    shown = render_card({"recipe": "r", "stage": "s"}, OneVision(), is_intermediate=False)
    for lines in ALL:
        assert f"```python\n{lines('.', 'a.png', 'What is shown?')}```" in shown
    assert "AutoProcessor" not in render_card({}, OneVision(), is_intermediate=True)


def test_four_bits_are_for_the_language_model_alone():
    """By the rule of transformers 5, and by that of 4.57: a module's whole name, or a prefix that ends at a dot."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    with torch.device("meta"):
        model = tiny_model(tiny_config(tokenizer))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    kept = {part_of(f"{name}.weight") for name in linear if not should_convert_module(name, list(NOT_QUANTISED))}
    assert kept == {"vision_tower", "projector", "language_model"}  # the last by lm_head alone
    for name in linear:
        older = any(name == skipped or f"{skipped}." in name for skipped in NOT_QUANTISED)
        assert (
            should_convert_module(name, list(NOT_QUANTISED)) == (not older) == name.startswith("model.language_model.")
        )


def test_four_bit_lines_answer(tmp_path):
    folder = make_tiny(tmp_path / "tiny")
    told = """
kinds = {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, "weight")}
four = [name for name, kind in kinds.items() if kind == "Linear4bit"]
assert four and all(name.startswith("model.language_model.layers.") for name in four), four
print("answered")
"""
    lines = four_bit_lines(OneVision(), str(folder), str(IMAGES[0]), "What is shown?") + told
    result = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert result.stdout.endswith("answered\n"), result.stderr
