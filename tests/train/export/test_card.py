"""A stage's card from its records: the whole recipe, the bases, nothing of the machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llava_train.config.load import load
from llava_train.config.schema import ModelConfig
from llava_train.evaluate.prediction import EVALUATION_FILE, Prediction
from llava_train.family.onevision.family import OneVision
from llava_train.model.hf_folder.card import base_models, card_record, common_licence, hub_datasets, render_card
from llava_train.model.hf_folder.preparation import PREPARATION_FILE
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config
from llava_train.train.checkpoint.state import TrainState
from llava_train.train.export import card as cards
from llava_train.train.export.card import make_card, refresh_card, start_record
from llava_train.train.run.stages import all_stages, finish

STATE = asdict(TrainState(step=7, num_samples=14, num_tokens=2000, num_supervised=300, loss=1.25, seconds=4.0))
STAGES = ["projector", "mid", "final_image", "onevision"]


def recipe(tmp_path, name: str, *words: str):
    config = load([f"+recipe={name}", f"run.dir={tmp_path / name}", f"data.root={tmp_path}", *words])
    return config, all_stages(config)


def counts(config, stage) -> dict[str, int]:
    return dict.fromkeys(list(start_record(config, stage)["sources"])[:2], 11)


def write_export(card, folder: Path) -> str:
    """What an export keeps of a card. Returns all that it tells."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(render_card(card, OneVision(), is_intermediate=False))
    (folder / PREPARATION_FILE).write_text(json.dumps({"mode": "anyres"} | card_record(card)))
    return (folder / "README.md").read_text() + (folder / PREPARATION_FILE).read_text()


def train(config, stages) -> tuple[dict, str]:
    """The last card of a run whose stages only leave their records, and all that its export tells."""
    for stage in stages:
        card = make_card(config, stage, STATE, {"data": counts(config, stage)})
        told = write_export(card, stage.export)
    return card, told


def test_one_run_tells_all_its_stages(tmp_path):
    card, _ = train(*recipe(tmp_path, "all_stages"))
    assert [stage["stage"] for stage in card["history"]] + [card["stage"]] == STAGES
    assert base_models(card) == ["google/siglip-so400m-patch14-384", "Qwen/Qwen2-7B-Instruct"]
    assert hub_datasets(card)[:2] == ["liuhaotian/LLaVA-Pretrain", "lmms-lab/LLaVA-ReCap-558K"]
    shown = render_card(card, OneVision(), is_intermediate=False)
    assert "| setting | projector | mid | final_image | onevision |" in shown
    assert "| learning rate, vision tower | frozen | 2e-06 | 2e-06 | 2e-06 |" in shown
    assert (
        "| projector | new, seed 0 |  | projector (0.001), mid (1e-05), final_image (1e-05), onevision (1e-05) |"
        in shown
    )
    row = "| blip_laion_cc_sbu_558k | 11 | all | liuhaotian/LLaVA-Pretrain | other: the terms of CC-3M and BLIP |"
    assert row in shown


def test_separate_runs_tell_the_same_and_no_path(tmp_path):
    together, _ = train(*recipe(tmp_path, "all_stages"))
    init: list[str] = []
    for name in ("projector_stage", "mid_stage", "final_image_stage", "ov_stage"):
        config, stages = recipe(tmp_path, name, *init)
        apart, told = train(config, stages)
        init = [f"model.init={stages[-1].export}"]
        for secret in (str(tmp_path), tmp_path.name, str(Path.home()) + "/"):
            assert secret not in told
    assert apart["init"] == "final_image/hf"
    assert apart["origins"] == together["origins"]
    for own, other in zip(card_record(apart)["history"], card_record(together)["history"], strict=True):
        assert own | {"recipe": "", "settings": 0} == other | {"recipe": "", "settings": 0}


def test_figures_ranks_and_versions_come_from_the_records(tmp_path):
    config, [stage] = recipe(tmp_path, "ov_stage")
    free = {"number of ranks": 4, "version of torch": "9.9"}
    meta = {"data": {"llava_next": 3}, "fingerprint": {"fixed": {}, "free": free}, "num_refused": 5}
    card = make_card(config, stage, STATE | {"skipped": [{}, {}]}, meta)
    assert card["figures"] == {
        "training loss of the last step": 1.25,
        "samples": 14,
        "tokens": 2000,
        "supervised tokens": 300,
        "samples lost in decoding": 2,
        "samples refused before training": 5,
        "seconds": 4.0,
        "tokens per second": 500.0,
    }
    assert (card["settings"]["ranks"], card["settings"]["optimiser steps"]) == ("4", "7")
    assert card["versions"]["torch"] == "9.9"
    assert card["versions"].keys() == {"llava_train", "torch", "transformers", "deepspeed", "python"}
    assert list(card["sources"]) == ["llava_next"]


def begin(tmp_path, **model):
    """What is told of a stage that starts from these weights."""
    config, [stage] = recipe(tmp_path, "ov_stage")
    names = {"init": "", "language_model": "", "vision_tower": "", "attention": "auto", **model}
    return start_record(config, replace(stage, start=ModelConfig(**names)))


def folder(tmp_path, name: str, metadata: str) -> str:
    path = tmp_path / "secret" / name
    path.mkdir(parents=True)
    (path / "README.md").write_text(f"---\n{metadata}---\n# x\n")
    return str(path)


def test_a_folder_passes_on_what_its_own_card_names(tmp_path):
    tower = folder(tmp_path, "tower", "license: apache-2.0\nbase_model: google/siglip\n")
    language = folder(
        tmp_path, "language", "license: other\nlicense_name: n\nlicense_link: LICENSE\nbase_model: [a/b, c]\n"
    )
    record = begin(tmp_path, language_model=language, vision_tower=tower)
    assert record["init"] == "language and tower"
    expected = {"name": "tower", "base_models": ["google/siglip"], "licence": {"license": "apache-2.0"}}
    assert record["origins"]["vision_tower"] == expected
    own = {"name": "language", "base_models": ["a/b"], "licence": {"license": "other", "license_name": "n"}}
    assert record["origins"]["language_model"] == own
    assert common_licence({"origins": {"tower": expected}}) == {"license": "apache-2.0"}
    assert common_licence({"origins": record["origins"]}) == {}


@pytest.mark.parametrize("metadata", ["a: [\n", "- a\n", "", "base_model: 3\nlicense: [mit]\n"])
def test_a_card_that_says_nothing_names_nothing(tmp_path, metadata):
    record = begin(tmp_path, init=folder(tmp_path, "start", metadata))
    assert record["origins"]["projector"] == {"name": "start", "base_models": [], "licence": {}}


def test_a_hub_name_is_its_own_base_and_tells_its_licence_once_downloaded(tmp_path, monkeypatch):
    assert begin(tmp_path, init="org/model")["origins"]["projector"]["licence"] == {}
    cached = folder(tmp_path, "cached", "license: other\nlicense_name: n\nlicense_link: LICENSE\nbase_model: a/b\n")
    monkeypatch.setattr(cards, "try_to_load_from_cache", lambda _, file: str(Path(cached, file)))
    record = begin(tmp_path, init="org/model")
    link = "https://huggingface.co/org/model/blob/main/LICENSE"
    licence = {"license": "other", "license_name": "n", "license_link": link}
    assert record["origins"]["projector"] == {"name": "org/model", "base_models": ["org/model"], "licence": licence}


def test_a_folder_that_looks_like_a_hub_name_is_no_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("org/model").mkdir(parents=True)
    assert begin(tmp_path, init="org/model")["origins"]["projector"]["base_models"] == []


def test_random_weights_have_no_base_and_no_licence(tmp_path):
    config, stages = recipe(tmp_path, "tiny")
    card, _ = train(config, stages[:1])
    assert base_models(card) == []
    assert {origin["name"] for origin in card["origins"].values()} == {"random weights"}
    assert common_licence(card) == {"license": "apache-2.0"}  # that of the data: our own


def test_what_was_recorded_at_the_start_outlives_start_and_mixture(tmp_path):
    mixture = tmp_path / "mine.yaml"
    mixture.write_text("sources: {a: {file: a.json, repository: org/a, repeat: 2}}\n")
    train(*recipe(tmp_path, "projector_stage"))
    export = tmp_path / "projector_stage" / "projector" / "hf"
    config, [stage] = recipe(tmp_path, "mid_stage", f"model.init={export}", f"data.file={mixture}")
    meta = {"data": {"a": 1}, "start": json.loads(json.dumps(start_record(config, stage)))}
    now = make_card(config, stage, STATE, meta)
    assert now["sources"] == {"a": {"sampling": "all, 2 times", "repository": "org/a", "licence": ""}}
    shutil.rmtree(export)
    mixture.unlink()
    assert make_card(config, stage, STATE, meta) == now
    assert [entry["stage"] for entry in now["history"]] == ["projector"]
    assert make_card(config, stage, STATE, {"data": {"a": 1}})["sources"] == {}


def test_answers_are_told_of_the_weights_that_gave_them(tmp_path):
    config, [stage] = recipe(tmp_path, "ov_stage")
    meta = {"data": {"llava_next": 3}}
    write_export(make_card(config, stage, STATE, meta), stage.export)
    tiny_config(byte_tokenizer()).save_pretrained(stage.export)
    finish(stage, meta, STATE)
    right = asdict(Prediction("what?", "red", "Red.", "blue", [], []))
    wrong = asdict(Prediction("what?", "blue", "red", "blue", [], []))
    (stage.folder / EVALUATION_FILE).write_text(
        json.dumps({"key": {}, "results": {"shapes": [right, right, wrong, wrong]}})
    )
    refresh_card(config, stage)
    scores = {"accuracy": 0.5, "control": 0.5, "blind": 0.5, "questions": 4}
    notes = json.loads((stage.export / PREPARATION_FILE).read_text())
    assert (notes["mode"], notes["history"][-1]["evaluation"]) == ("anyres", {"shapes": scores})
    assert "| shapes | 0.500 | 0.500 | 0.500 | 4 |" in (stage.export / "README.md").read_text()
    assert "evaluation" not in make_card(config, stage, STATE | {"step": 6}, meta)
