"""Random mixtures of text, images, several images and videos on ranks that share every weight."""

import json
import random

import pytest
from runs import TINY, metrics

NUM_STEPS = 200
SETTINGS = {
    "stages.onevision.max_steps": NUM_STEPS,
    "stages.onevision.global_batch_size": 5,
    "stages.onevision.optimizer.epsilon": 1e-4,
    "stages.onevision.gradient_checkpointing": "false",
    "stages.onevision.checkpoint.every": 0,
    "stages.onevision.pack.max_tokens": 300,
    "stages.onevision.pack.max_tiles": 12,
    "data.root": TINY,
}


def write_records(path) -> None:
    draw = random.Random(0)
    images = sorted(f"images/{file.name}" for file in (TINY / "images").iterdir())
    records = []
    for i in range(150):
        kind = draw.choice(["text", "text", "image", "images", "video"])
        media = {
            "text": {},
            "image": {"image": draw.choice(images)},
            "images": {"image": draw.sample(images, 2)},
            "video": {"video": "clip.mp4"},
        }[kind]
        tags = {"text": "", "image": "<image>\n", "images": "<image>\n<image>\n", "video": "<video>\n"}[kind]
        question, answer = ("".join(draw.choices("abcdefgh ", k=draw.randint(5, 60))) for _ in range(2))
        turns = [{"from": "human", "value": f"{tags}q{question}"}, {"from": "gpt", "value": f"a{answer}"}]
        records.append({"id": f"{kind}-{i}", **media, "conversations": turns})
    path.write_text(json.dumps(records))


@pytest.mark.slow
def test_zero_3_on_two_ranks_follows_one_rank_for_200_steps_of_mixed_samples(torchrun, tmp_path):
    write_records(tmp_path / "mixed.json")
    words = [f"{key}={value}" for key, value in SETTINGS.items()] + [f"data.file={tmp_path / 'mixed.json'}"]
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun(1, "mixture_worker.py", *words, f"run.dir={one}", "stages.onevision.zero.level=0")
    printed = torchrun(2, "mixture_worker.py", *words, f"run.dir={two}", "stages.onevision.zero.level=3")
    mixed = int(next(line.split()[1] for line in printed.splitlines() if line.startswith("MIXED")))
    assert mixed > NUM_STEPS / 10, "a rank has text alone while the other has images"
    losses = [line["loss"] for line in metrics(one)]
    assert len(losses) == NUM_STEPS
    assert min(losses[-20:]) < losses[0] / 2
    assert [line["loss"] for line in metrics(two)] == pytest.approx(losses, rel=1e-5)
