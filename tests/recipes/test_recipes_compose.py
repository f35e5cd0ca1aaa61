"""Every recipe composes and is sound; the real ones, as they stand, lack files and nothing else."""

import json
import re
from pathlib import Path

import pytest

from llava_train.config.load import load
from llava_train.config.rules.files import check_files
from llava_train.config.shipped_files import headline, shipped_recipes
from llava_train.model.start.start_faults import model_faults

REAL = ("projector_stage", "mid_stage", "final_image_stage", "ov_stage", "all_stages")
SIZES = ("onevision_0_5b", "onevision_7b", "onevision_72b")
GEOMETRY = json.loads((Path(__file__).parents[1] / "golden" / "geometry.json").read_text())["modes"]


def test_recipes_are_those_that_are_promised():
    assert set(shipped_recipes()) == {*REAL, "lora_domain", "demo", "demo_lora", "tiny"}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_recipe_composes_and_opens_with_what_it_is(name):
    path = shipped_recipes()[name]
    config = load([f"+recipe={name}"])
    assert config.stages
    assert 20 < len(headline(path)) <= 100
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"+recipe={name}" in line for line in comment)
    assert any("Hardware" in line for line in comment)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REAL)
def test_a_real_recipe_lacks_only_files(name, size, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load([f"+recipe={name}", f"model={size}"])
    _, faults = check_files(config, [model_faults])
    assert faults
    assert all(re.search("no file|no folder|are not on disk", fault.problem) for fault in faults)
    starts = [fault.key for fault in faults if fault.key.startswith("model")]
    assert starts == ([] if name in ("projector_stage", "all_stages") else ["model.init"])


@pytest.mark.parametrize("name", REAL)
def test_a_real_recipe_takes_a_start_and_a_file_of_ones_own(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    (tmp_path / "f.jsonl").write_text("{}\n" * 512)
    records, faults = check_files(load([f"+recipe={name}", "model.init=m", "data.file=f.jsonl", "data.root=."]))
    assert faults == []
    assert {entry.num_samples for entry in records.values()} == {512}


def test_lora_domain_lacks_only_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [fault] = check_files(load(["+recipe=lora_domain"]))[1]
    assert "data.file: is empty" in fault.problem
    (tmp_path / "f.jsonl").write_text("{}\n" * 16)
    assert check_files(load(["+recipe=lora_domain", "data.file=f.jsonl", "data.root=."]))[1] == []


def test_a_stage_starts_where_the_recipe_before_it_writes():
    before = load(["+recipe=projector_stage", "model=onevision_72b"])
    for name in ("mid_stage", "final_image_stage", "ov_stage"):
        config = load([f"+recipe={name}", "model=onevision_72b"])
        assert config.model.init == f"{before.run.dir}/{next(iter(before.stages))}/hf"
        before = config


def test_sizes_do_not_share_a_folder():
    assert len({load(["+recipe=all_stages", f"model={size}"]).run.dir for size in SIZES}) == 3


def test_all_stages_holds_the_four_unchanged():
    together = load(["+recipe=all_stages"])
    apart = [load([f"+recipe={name}"]) for name in REAL[:4]]
    assert [(name, stage) for config in apart for name, stage in config.stages.items()] == list(together.stages.items())
    assert together.model.init == ""


def test_demo_has_the_stages_of_the_real_run():
    assert list(load(["+recipe=demo"]).stages) == list(load(["+recipe=all_stages"]).stages)


def test_grids_are_the_golden_ones():
    stages = load(["+recipe=all_stages"]).stages
    for stage, mode in {"mid": "anyres_mid", "final_image": "anyres_max_9", "onevision": "anyres_max_9"}.items():
        image, golden = stages[stage].image, GEOMETRY[mode]
        tile = golden["tile"]
        assert [[rows * tile, columns * tile] for rows, columns in image.grid] == golden["grid_hw"]
        assert image.max_tiles == golden["max_tiles"]


# stage: vision tower, projector, language model, batch, length, template (the published scripts and documents)
FIGURES = {
    "projector": ("frozen", 1e-3, "frozen", 512, 8192, "plain"),
    "mid": (2e-6, 1e-5, 1e-5, 512, 32768, "qwen"),
    "final_image": (2e-6, 1e-5, 1e-5, 256, 32768, "qwen"),
    "onevision": (2e-6, 1e-5, 1e-5, 256, 32768, "qwen"),
}


def test_figures_are_those_of_the_published_recipe():
    stages = load(["+recipe=all_stages"]).stages
    assert list(stages) == list(FIGURES)
    for name, stage in stages.items():
        rates = stage.learning_rate
        shown = (rates.vision_tower, rates.projector, rates.language_model)
        assert (*shown, stage.global_batch_size, stage.max_length, stage.template) == FIGURES[name]
        assert (stage.schedule.kind, stage.schedule.warmup_ratio, stage.epochs) == ("cosine", 0.03, 1.0)
        assert (stage.optimizer.weight_decay, stage.optimizer.beta1, stage.optimizer.beta2) == (0.0, 0.9, 0.999)
        assert (stage.precision, stage.zero.level, stage.gradient_checkpointing) == ("bf16", 3, True)
