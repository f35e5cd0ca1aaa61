"""What forbids to go on from a checkpoint, what does not, and the written config."""

import json
from pathlib import Path

import pytest
import yaml

from llava_train.config.fingerprint import differences, dump, fingerprint
from llava_train.config.load import load

FREE = [
    "run.name=other",
    "data.root=elsewhere",
    "data.num_workers=3",
    "data.decode_timeout=5",
    "log.every=7",
    "preview.count=9",
    "evaluation.batch_size=3",
    "stages.onevision.checkpoint.every=5",
    "stages.onevision.pack.max_tokens=99",
    "stages.onevision.gradient_checkpointing=false",
    "stages.onevision.zero.offload_optimizer=true",
    "model.attention=sdpa",
    "stages.projector.epochs=7",
]
BINDING = {
    "run.seed=1": "run.seed",
    "data.on_error=skip": "data.on_error",
    "data.max_pixels=5": "data.max_pixels",
    "stages.onevision.max_steps=5": "stages.onevision.max_steps",
    "stages.onevision.learning_rate.projector=5": "stages.onevision.learning_rate.projector",
    "stages.onevision.image.grid=[[1,1]]": "stages.onevision.image.grid",
    "stages.onevision.zero.level=1": "stages.onevision.zero.level",
    "stages.onevision.label_rule=original": "stages.onevision.label_rule",
}


def of(*words: str, stage: str = "onevision") -> dict:
    mixtures = ["stages.projector.mixture=mix.yaml", "stages.onevision.mixture=mix.yaml"]
    return fingerprint(load(["+recipe=tiny", *mixtures, *words]), stage)


@pytest.fixture(autouse=True)
def mixture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mix.yaml").write_text("sources: {a: {file: a.json, sampling: 'first:3'}}")


def test_settings_of_speed_and_place_do_not_bind():
    assert differences(of(), of(*FREE)) == []


def test_settings_of_numbers_and_order_bind_by_name():
    saved = of()
    for word, key in BINDING.items():
        lines = differences(saved, of(word))
        assert [line.partition(":")[0] for line in lines] == [key]


def test_a_difference_names_both_values():
    assert differences(of(), of("run.seed=1")) == ["run.seed: 0 in the checkpoint, 1 now"]


def test_a_mixture_binds_by_what_it_holds():
    saved = of()
    Path("moved.yaml").write_text(Path("mix.yaml").read_text())
    assert differences(saved, of("stages.onevision.mixture=moved.yaml")) == []
    Path("mix.yaml").write_text("sources: {a: {file: a.json, sampling: 'first:4'}}")
    assert differences(saved, of()) == ["sources.a.sampling: first:3 in the checkpoint, first:4 now"]


def test_the_start_binds_the_first_stage_and_the_stage_before_binds_a_later_one():
    first = {"stage": "projector"}
    assert differences(of(stage="projector"), of("model.init=m", stage="projector")) == [
        "model.init: tiny in the checkpoint, m now"
    ]
    assert differences(of(), of("model.init=m")) == []
    assert of()["start"] == "stage projector"
    assert of(stage="projector")["stage"] == first["stage"]


def test_a_fingerprint_survives_json():
    assert json.loads(json.dumps(of())) == of()


def test_the_written_config_holds_every_setting():
    config = load(["+recipe=tiny", "run.name=it's: 图"])
    written = yaml.safe_load(dump(config))
    assert written["run"] == {"name": "it's: 图", "dir": "runs/it's: 图", "seed": 0}
    assert list(written["stages"]) == ["projector", "onevision"]
    assert written["stages"]["projector"]["optimizer"]["epsilon"] == 1e-8
