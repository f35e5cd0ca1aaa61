"""The tasks that the pages of transformers show for the family work on our checkpoints, in the spelling of a major."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onevision_reference import SEVERAL, SINGLE, TEXT, VIDEO, Case
from PIL import Image

from llava_train.data.samples.prompts import with_tags
from llava_train.data.samples.sample import Sample, Turn
from llava_train.evaluate.answerer import Answerer
from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny

NEW_TOKENS = 6
SCRIPT = Path(__file__).with_name("load_tasks.py")
CASES = {"text": TEXT, "single": SINGLE, "several": SEVERAL, "video": VIDEO}


def part(kind, value):
    return {"type": kind, kind: value}


def message(case: Case):
    """All media of a case before its words."""
    words = case.text.replace("<image>", "").replace("<video>", "").strip()
    videos = [np.stack([np.asarray(frame) for frame in film]) for film in case.videos()]
    media = [part("image", picture) for picture in case.pictures()] + [part("video", film) for film in videos]
    return {"role": "user", "content": [*media, part("text", words)]}


def conversations():
    """Each kind by itself, and several turns of which the second brings an image."""
    made = {name: [message(case)] for name, case in CASES.items()}
    said = {"role": "assistant", "content": [part("text", "A cat.")]}
    made["turns"] = [message(SINGLE), said, message(Case("again", ((30, 70),), (), "And here?"))]
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tasks") / "tiny", tied=False)


def run(folder, out, path, attention="sdpa"):
    torch.save((str(folder), conversations(), NEW_TOKENS), out / "task.pt")
    environ = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, SCRIPT, out / "task.pt", out / "out.pt", attention], env=environ, check=True)
    return torch.load(out / "out.pt", weights_only=False)


@pytest.fixture(scope="module")
def other(major_path, folder, tmp_path_factory):
    major, path = major_path
    seen = run(folder, tmp_path_factory.mktemp("out"), path)
    assert seen["version"].startswith(f"{major}.")
    return seen


def whole(ids):
    """Up to the end token; a batch goes on to its longest answer."""
    ends = byte_tokenizer().convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return next((ids[:i] for i, token in enumerate(ids) if token in ends), ids)


def test_a_mixed_batch_is_answered_as_each_alone(other):
    assert list(other["alone"]) == ["text", "single", "several", "video", "turns"]
    assert len({tuple(ids) for ids in other["alone"].values()}) > 3
    for name, ids in other["alone"].items():
        assert whole(other["batch"][name]) == whole(ids), name


def test_pipeline_takes_several_turns(other):
    assert other["pipeline"] == other["texts"]["turns"]
    assert other["pipeline"]


def test_generate_answers_alike(other, folder, tmp_path):
    """Exactly where pictures are resized by PIL as in training: in 4.57; 5.x takes torchvision where it is."""
    samples = {name: as_sample(name, messages, tmp_path) for name, messages in conversations().items()}
    answers = Answerer(str(folder), torch.device("cpu"), 10**6, 10.0).answers(list(samples.values()), 5, NEW_TOKENS)
    same = ["text"] if other["version"] >= "5" else list(samples)
    found = dict(zip(samples, answers, strict=True))
    assert {name: found[name] for name in same} == {name: other["texts"][name].strip() for name in same}


def as_sample(name, messages, folder):
    """The conversation by its files."""
    turns, paths = [], {"image": [], "video": []}
    for message in messages:
        *media, words = message["content"]
        for one in media:
            kind, at = one["type"], folder / f"{name}{len(turns)}{sum(map(len, paths.values()))}"
            paths[kind].append(at.with_suffix(".png") if kind == "image" else at)
            if kind == "image":
                one["image"].save(paths[kind][-1])
            else:
                at.mkdir()
                for i, frame in enumerate(one["video"]):
                    Image.fromarray(frame).save(at / f"{i}.png")
        role = {"user": "human", "assistant": "gpt"}[message["role"]]
        turns.append(Turn(role, with_tags(words["text"], [one["type"] for one in media])))
    return Sample(name, "tasks", turns, paths["image"], paths["video"])


@pytest.mark.gpu
def test_flash_attention_answers_every_task(major_path, folder, tmp_path):
    pytest.importorskip("flash_attn")
    seen = run(folder, tmp_path, major_path[1], "flash_attention_2")
    assert seen["attention"] == "flash_attention_2"
    assert all(map(len, seen["alone"].values()))
    assert all(map(len, seen["batch"].values()))
