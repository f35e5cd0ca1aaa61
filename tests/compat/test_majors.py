"""An exported checkpoint loads whole and computes the same in transformers 4.57 and 5.x, its processor included."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava_train.config.schema import GenerateModel, VideoConfig
from llava_train.family.onevision.family import OneVision
from llava_train.model.forward.generate import generate
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.folder import write_checkpoint
from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
from llava_train.model.hf_folder.usage_lines import pipeline_lines, processor_lines
from llava_train.model.loading.load_model import load_checkpoint
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG

sys.path.append(str(Path(__file__).parents[1] / "parity"))
from onevision_reference import SEVERAL, SINGLE, TEXT, VIDEO, Ours

QUESTION = SINGLE.text.removeprefix("<image>\n")
CASES = (TEXT, SINGLE, SEVERAL, VIDEO)
SENTENCE = "<|im_start|>user\n<image>\nIt's 12 degrees.<|im_end|>\n"
QWEN2 = Path(__file__).parents[1] / "golden" / "qwen2_tokenizer"


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    """tied, untied: fp32. bf16: written again from tied. square: a stage 1's. qwen2: with the published tokenizer."""
    root = tmp_path_factory.mktemp("exports")
    folders = {name: make_tiny(root / name, tied=name == "tied") for name in ("tied", "untied")}
    folders["qwen2"] = make_tiny(root / "qwen2", QWEN2)
    for name, dtype, mode in (("bf16", torch.bfloat16, "anyres"), ("square", torch.float32, "square")):
        loaded = load_checkpoint(GenerateModel(str(folders["tied"])), dtype)
        geometry = replace(checkpoint_geometry(loaded.model.config), mode=mode)
        preparation = Preparation(geometry, "qwen", "front", VideoConfig(1.0, 4))
        card = {"recipe": "r", "stage": "s", "init": "i", "data": {}, "settings": {}, "figures": {}}
        folders[name] = root / name
        tensors = loaded.model.state_dict().items()
        write_checkpoint(root / name, tensors, loaded.model.config, loaded.tokenizer, preparation, card)
    return folders


@pytest.fixture(scope="module")
def ours(exports):
    """Each export in this environment: the loaded checkpoint, a batch of ours, its logits by our forward."""
    seen = {}
    for name, folder in exports.items():
        loaded = load_checkpoint(GenerateModel(str(folder)), "auto")
        config = loaded.model.config
        mine = Ours(loaded.tokenizer, checkpoint_geometry(config), config.image_token_index, config.video_token_index)
        forward = PackedForward(loaded.model, mine.geometry)
        batch = mine.pack((SINGLE,))
        with torch.no_grad():
            logits = loaded.model.lm_head(forward.hidden_states(batch))
        pixels = ((batch.pixel_values.float() / 255 - 0.5) / 0.5).to(loaded.model.dtype)
        inputs = {
            "input_ids": batch.input_ids[None],
            "pixel_values": pixels,
            "image_sizes": torch.tensor(SINGLE.images),
        }
        ids = loaded.tokenizer(SENTENCE)["input_ids"]
        seen[name] = SimpleNamespace(
            prepare=mine, forward=forward, logits=logits, inputs=inputs, ids=ids, dtype=loaded.model.dtype
        )
    return seen


@pytest.fixture(scope="module")
def other(major_path, exports, ours, tmp_path_factory):
    """What a program under that major saw."""
    major, path = major_path
    folder = tmp_path_factory.mktemp("other")
    folders = {str(exports[name]): ours[name].inputs for name in exports}
    cases = [
        {
            "name": case.name,
            "content": content(case.text),
            "images": case.pictures(),
            "videos": [np.stack([np.asarray(frame) for frame in film]) for film in case.videos()],
        }
        for case in CASES
    ]
    SINGLE.pictures()[0].save(folder / "a.png")
    asked = str(exports["untied"]), str(folder / "a.png"), QUESTION
    lines = [processor_lines(OneVision(), *asked), pipeline_lines(*asked)]
    task = {
        "folders": folders,
        "texts": dict.fromkeys(folders, SENTENCE),
        "asked": str(exports["untied"]),
        "cases": cases,
        "lines": lines,
    }
    torch.save(task, folder / "task.pt")
    script = Path(__file__).with_name("load_exports.py")
    subprocess.run(
        [sys.executable, script, folder / "task.pt", folder / "out.pt"],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    out = torch.load(folder / "out.pt", weights_only=False)
    assert out["version"].startswith(f"{major}.")
    return out


def content(text: str) -> list[dict[str, str]]:
    """The parts of a chat message that a text with tags stands for."""
    parts = []
    for i, words in enumerate(text.replace(VIDEO_TAG, f"{IMAGE_TAG}v").split(IMAGE_TAG)):
        if i:
            parts.append({"type": "video" if words.startswith("v") else "image"})
        if words.removeprefix("v" if i else ""):
            parts.append({"type": "text", "text": words.removeprefix("v" if i else "")})
    return parts


def test_every_key_fits_and_logits_are_equal(other, exports, ours):
    assert len(exports) == 5
    for name, folder in exports.items():
        seen = other["loaded"][str(folder)]
        assert seen["problems"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}, name
        assert seen["dtype"] == ours[name].dtype, name
        tolerance = 1e-5 if name != "bf16" else 0.15
        torch.testing.assert_close(seen["logits"][0].float(), ours[name].logits.float(), rtol=0, atol=tolerance)


def test_tokenizer_gives_equal_ids(other, exports, ours):
    for name, folder in exports.items():
        assert other["loaded"][str(folder)]["ids"] == ours[name].ids, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_processor_gives_the_ids_and_pixels_of_training(other, ours, case):
    encoded, tiles = ours["untied"].prepare.encode(case, prompt=True)
    seen = other["inputs"][case.name]
    assert seen["input_ids"][0].tolist() == encoded.input_ids.tolist()
    pixels = [seen[key].flatten(0, 1) for key in ("pixel_values", "pixel_values_videos") if key in seen]
    assert bool(pixels) == bool(len(tiles))
    if pixels:
        found = (torch.cat(pixels) * 0.5 + 0.5) * 255
        difference = (found - torch.from_numpy(tiles).float()).abs().max()
        assert difference <= 0.01 if other["version"] < "5" and case.images else difference <= 2.01  # PIL, torchvision


def test_pipeline_answers_as_generate_does(other, ours):
    """Exactly where it resizes by PIL as training does: in 4.57; 5.x takes torchvision where it is."""
    exact = [case for case in CASES if not case.frames and (other["version"] < "5" or not case.images)]
    assert exact
    for case, text in zip(exact, answers(ours["untied"], tuple(exact), 6), strict=True):
        assert other["answers"][case.name].strip() == text
    assert set(other["answers"]) == {case.name for case in CASES if not case.frames}


def test_lines_of_the_card_answer_as_generate_does(other, ours):
    by_processor, by_pipeline = map(str.strip, other["printed"])
    assert by_processor
    assert by_processor == by_pipeline
    if other["version"] < "5":
        assert [by_processor] == answers(ours["untied"], (SINGLE,), 64)


def answers(one, cases, max_new_tokens):
    tokenizer = one.prepare.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids = generate(one.forward, one.prepare.pack(cases, prompt=True), max_new_tokens, ends, ends[1])
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]
