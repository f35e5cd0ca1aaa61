"""The real recipes train, stage after stage, on a tiny model and a person's own file, with nothing else in the way."""

import json

import pytest
from PIL import Image

from llava_train.cli.main import main
from llava_train.config.load import load
from llava_train.model.loading.tiny_model import make_tiny

STAGES = ("projector", "mid", "final_image", "onevision")


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> list[str]:
    """model.init, data.file, data.root of captioned images: what every stage's template takes."""
    root = tmp_path_factory.mktemp("own data")
    records = []
    for i, size in enumerate([(40, 30), (90, 50), (30, 80), (64, 64), (20, 100)]):
        Image.effect_noise(size, 80).convert("RGB").save(root / f"{i}.png")
        talk = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": f"picture {i}"}]
        records.append({"id": i, "image": f"{i}.png", "conversations": talk})
    (root / "own.json").write_text(json.dumps(records))
    return [f"model.init={make_tiny(root / 'model')}", f"data.file={root / 'own.json'}", f"data.root={root}"]


def test_all_stages_run_two_steps_each_as_published(own, tmp_path, capsys):
    small = [f"stages.{stage}.global_batch_size=3" for stage in STAGES]  # two steps of five samples: three and two
    command = ["+recipe=all_stages", *own, f"run.dir={tmp_path}", "data.num_workers=0", *small]
    assert main(command) == 0, capsys.readouterr().err
    for stage in STAGES:
        lines = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
        assert [line["num_samples"] for line in lines] == [3, 2]
        assert (tmp_path / stage / "hf/model.safetensors").exists()
    assert load(command).stages["onevision"].precision == "bf16"
    assert load(command).stages["onevision"].zero.level == 3


@pytest.mark.parametrize("recipe", ["projector_stage", "mid_stage", "final_image_stage", "ov_stage", "all_stages"])
@pytest.mark.parametrize("size", ["onevision_0_5b", "onevision_7b", "onevision_72b"])
def test_own_checkpoint_and_file_are_all_that_a_real_recipe_needs(own, recipe, size, capsys):
    main(["check", f"+recipe={recipe}", f"model={size}", *own])
    told = capsys.readouterr().err
    faults = [line for line in told.splitlines() if line[:4].strip().rstrip(".").isdigit()]
    assert faults, told
    assert all("5 samples" in fault for fault in faults), told  # fewer than a published batch, nothing else
