"""The demo and the one of adapters: shortened to about a fiftieth of their steps, and whole (slow)."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_train.cli.main import main
from llava_train.evaluate.comparison import compare, read_scores
from llava_train.evaluate.scoring import normalise

ROOT = Path(__file__).parents[2]
STEPS = {"projector": 3, "mid": 2, "final_image": 3, "onevision": 6}


@pytest.fixture(scope="module")
def short_data(tmp_path_factory) -> Path:
    """The demo's data and parts, few of each and hardly trained, by the demo's own scripts."""
    sys.path.insert(0, str(ROOT / "data/scripts"))
    import make_demo
    import make_demo_parts

    numbers = dict(NUM_LISTS=60, NUM_VIDEOS=40, NUM_TEXTS=200, NUM_HELD_OUT=12)
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in numbers.items():
            patch.setattr(make_demo, name, value)
        patch.setattr(make_demo_parts, "TOWER_STEPS", 44)
        patch.setattr(make_demo_parts, "TEXT_STEPS", 10)
        make_demo.make(folder, 0)
        torch.manual_seed(0)
        make_demo_parts.train_tower(folder, _made(folder / "parts/vision_tower"))
        make_demo_parts.train_language_model(folder, _made(folder / "parts/language_model"), random.Random(0))
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> Path:
    """Folder of the shortened demo's run."""
    return tmp_path_factory.mktemp("run")


def test_short_demo_goes_through_the_four_stages_to_a_model_that_answers(short_data, short_run, capsys):
    tmp_path = short_run
    words = [f"stages.{stage}.max_steps={steps}" for stage, steps in STEPS.items()]
    command = ["+recipe=demo", f"data.root={short_data}", f"run.dir={tmp_path}", "data.num_workers=0", *words]
    assert main(command) == 0
    told = capsys.readouterr().out
    for stage, steps in STEPS.items():
        assert len((tmp_path / stage / "metrics.jsonl").read_text().splitlines()) == steps
        results = json.loads((tmp_path / stage / "evaluation.json").read_text())["results"]
        assert {task: len(items) for task, items in results.items()} == dict.fromkeys(results, 12)
        assert len(results) == 3
    for name in ("shapes", "multi_image", "video", "blind", "samples.png", "loss.png"):
        assert name in told
    assert (tmp_path / "report/samples.png").stat().st_size > 10_000
    lines = told[told.index("in this environment:") : told.index("or where torchvision")].split("\n", 1)[1]
    exec("\n".join(line[4:] for line in lines.splitlines()), {})
    assert main(command) == 0
    assert "all is done" in capsys.readouterr().out


def test_short_adaptation_trains_less_than_a_twentieth(short_data, short_run, tmp_path, monkeypatch):
    """On the shortened demo's model, which the test before has trained; full tuning and the control are sound."""
    import make_demo_domain

    monkeypatch.setattr(make_demo_domain, "NUM_TRAIN", 40)
    monkeypatch.setattr(make_demo_domain, "NUM_HELD_OUT", 6)
    make_demo_domain.make(_made(short_data / "dials"), 0)
    start = f"model.init={short_run / 'onevision/hf'}"
    command = ["+recipe=demo_lora", start, f"data.root={short_data}", f"run.dir={tmp_path}", "data.num_workers=0"]
    for words in (["~stages.domain.lora"], ["stages.domain.mixture=demo_lora_shuffled"]):
        assert main(["check", *command, *words]) == 0
    assert main([*command, "stages.domain.max_steps=2"]) == 0
    trained, whole = (
        sum(tensor.numel() for tensor in load_file(tmp_path / "domain" / file).values())
        for file in ("adapter/adapter_model.safetensors", "hf/model.safetensors")
    )
    assert 0.04 < trained / whole < 0.05
    assert json.loads((tmp_path / "domain/evaluation.json").read_text())["results"].keys() == {"dials"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_demo_reaches_its_floors(tmp_path, seed):
    """Accuracy on 500 held-out items each: shapes 0.70, lists over images and video 0.60; controls about blind."""
    scripts = [[f"data/scripts/{name}.py", "--seed", str(seed)] for name in ("make_demo", "make_demo_parts")]
    run = ["-m", "llava_train", "+recipe=demo", f"run.seed={seed}", f"run.dir={tmp_path}"]
    for words in [*scripts, run]:
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    results = json.loads((tmp_path / "onevision/evaluation.json").read_text())["results"]
    for task, floor, blind in (("shapes", 0.70, 0.25), ("multi_image", 0.60, 0.04), ("video", 0.60, 0.04)):
        items = results[task]
        assert len(items) >= 500
        right = sum(normalise(item["predicted"]) == normalise(item["answer"]) for item in items) / len(items)
        control = sum(normalise(item["control"]) == normalise(item["answer"]) for item in items) / len(items)
        assert right >= floor, task
        assert control <= blind + 0.05, task


@pytest.mark.slow
def test_whole_adaptation_gains_in_its_domain_and_keeps_the_rest():
    """`make demo-lora`: up by 0.25 at least, by more than the control; no old task is clearly down."""
    subprocess.run(["make", "demo-lora"], cwd=ROOT, check=True)
    folder = ROOT / "runs/demo_lora/evaluations"
    before, *after = (read_scores(folder / name) for name in ("before", "adapter", "full_tuning", "shuffled_answers"))
    adapter, full, shuffled = (compare(before, scores) for scores in after)
    assert adapter["dials"].difference.low > 0.25
    assert adapter["dials"].score.low > shuffled["dials"].score.high
    for task in ("shapes", "multi_image", "video"):
        assert adapter[task].verdict != "down", task
    assert full["dials"].verdict == "up"
