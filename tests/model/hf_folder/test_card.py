"""The card as the hub reads it: front matter by huggingface_hub's own classes, tables that no text breaks."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from llava_train.family.onevision.family import OneVision
from llava_train.model.hf_folder.card import Card, card_record, last_names, render_card, without_paths

APACHE = {"license": "apache-2.0"}


def full_card(**changes) -> Card:
    first = {
        "recipe": "r",
        "stage": "projector",
        "data": {"captions": 558_128},
        "sources": {"captions": {"repository": "org/captions", "licence": "Apache-2.0", "sampling": "all"}},
        "rates": {"vision_tower": "frozen", "projector": "0.001", "language_model": "frozen"},
        "settings": {"seed": "0"},
        "figures": {"tokens": 12_345_678, "training loss of the last step": float("nan")},
    }
    return {
        "recipe": "r",
        "stage": "mid",
        "init": "projector/hf",
        "origins": {
            "vision_tower": {"name": "google/tower", "base_models": ["google/tower"], "licence": APACHE},
            "projector": {"name": "new, seed 0"},
            "language_model": {"name": "org/language", "base_models": ["org/language"], "licence": APACHE},
        },
        "history": [first],
        "data": {"documents": 5, "more": 6},
        "sources": {
            "documents": {"repository": "org/set:subset(a)", "licence": "apache-2.0", "sampling": "first:10%"},
            "more": {"repository": "org/set:subset(b)", "licence": "apache-2.0", "sampling": "all"},
        },
        "rates": {"vision_tower": "2e-06", "projector": "1e-05", "language_model": "1e-05"},
        "settings": {"seed": "1", "ranks": "8"},
        "figures": {"tokens": 99, "training loss of the last step": 0.123456},
        "evaluation": {"shapes": {"accuracy": 0.9, "control": 0.4, "blind": 0.3, "questions": 200}},
        "versions": {"torch": "2.13.0"},
    } | changes


def read(card: Card) -> ModelCardData:
    """The metadata, which the hub's class writes out as it read it."""
    parsed = ModelCard(render_card(card, OneVision(), is_intermediate=False))
    again = ModelCard(f"---\n{parsed.data.to_yaml()}\n---\n")
    assert again.data.to_dict() == parsed.data.to_dict()
    return parsed.data


def test_the_hub_reads_what_is_known():
    data = read(full_card())
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-text-to-text", "apache-2.0")
    assert data.base_model == ["google/tower", "org/language"]
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["org/captions", "org/set"]
    for name in (*data.base_model, *data.datasets):
        validate_repo_id(name)
    assert data.metrics == ["accuracy"]
    assert data.model_name == "r, stage mid"
    [result] = data.eval_results
    assert isinstance(result, EvalResult)
    assert (result.task_type, result.dataset_type, result.dataset_name) == ("image-text-to-text", "shapes", "shapes")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9)


def test_what_is_not_known_is_left_out():
    data = read({"recipe": "r", "stage": "s", "init": "somewhere", "data": {"mine": 3}})
    assert data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert read({}).pipeline_tag == "image-text-to-text"


@pytest.mark.parametrize("repository", ["", "unreleased", "https://a.org/b", "a/b/c", "on my disk"])
def test_datasets_are_names_on_the_hub_alone(repository):
    card = full_card(history=[], sources={"documents": {"repository": repository}})
    assert read(card).datasets is None


def test_a_source_without_samples_is_no_dataset():
    assert read(full_card(data={"documents": 5}, history=[])).datasets == ["org/set"]
    assert read(full_card(data={}, history=[])).datasets is None


OTHER = {"license": "other", "license_name": "tongyi-qianwen", "license_link": "https://a.org/LICENSE"}


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ([APACHE, APACHE], APACHE),
        ([APACHE, {"license": "mit"}], None),
        ([APACHE, {}], None),
        ([{"license": "my own"}], None),
        ([OTHER], OTHER),
        ([{"license": "other"}], None),
        ([OTHER, APACHE], None),
    ],
)
def test_a_licence_stands_where_all_weights_have_it(licences, expected):
    origins = {f"part {i}": {"name": "x", "licence": licence} for i, licence in enumerate(licences)}
    card = full_card(origins=origins, data={}, history=[])
    seen = read(card).to_dict()
    assert {key: seen[key] for key in seen if key.startswith("license")} == (expected or {})
    assert ("Not set" in render_card(card, OneVision(), is_intermediate=False)) == (expected is None)


@pytest.mark.parametrize("licence", ["", "cc-by-4.0"])
def test_a_licence_falls_where_data_has_none_or_another(licence):
    card = full_card()
    card["history"][0]["sources"]["captions"]["licence"] = licence
    assert read(card).license is None


def test_the_body_tells_every_stage():
    shown = render_card(full_card(), OneVision(), is_intermediate=False)
    for line in (
        "| setting | projector | mid |",
        "| seed | 0 | 1 |",
        "| ranks |  | 8 |",
        "| vision_tower | google/tower | apache-2.0 | mid (2e-06) |",
        "| projector | new, seed 0 |  | projector (0.001), mid (1e-05) |",
        "| captions | 558,128 | all | org/captions | Apache-2.0 |",
        "| documents | 5 | first:10% | org/set:subset(a) | apache-2.0 |",
        "| tokens | 12,345,678 | 99 |",
        "| training loss of the last step |  | 0.1235 |",
        "| shapes | 0.900 | 0.400 | 0.300 | 200 |",
        "| torch |  | 2.13.0 |",
    ):
        assert f"\n{line}\n" in shown
    silent = render_card({"stage": "s", "data": {"mine": 1234}}, OneVision(), is_intermediate=False)
    assert "\n| mine | 1,234 | not given | not given | not given |\n" in silent


def test_no_text_breaks_a_table_or_the_front_matter():
    nasty = "a|b\n---\n<script>\\|`: #"
    card = full_card(recipe=nasty, init=nasty, data={nasty: 1}, sources={nasty: {"licence": nasty}}, evaluation={})
    card["settings"] = {nasty: nasty}
    shown = render_card(card, OneVision(), is_intermediate=False)
    assert "<script>" not in shown.split("---\n", 2)[2]
    assert ModelCard(shown).data.pipeline_tag == "image-text-to-text"
    for table in (block for block in shown.split("\n\n") if block.startswith("|")):
        widths = {len(line.replace("\\\\", "").replace("\\|", "").split("|")) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_a_title_with_any_name_stays_metadata():
    scores = {"a: b\n---\n": {"accuracy": 1.0, "control": 0.0, "blind": 0.0, "questions": 1}}
    [result] = read(full_card(evaluation=scores, recipe="x: |\n---\n")).eval_results
    assert result.dataset_name == "a: b\n---\n"


def test_the_record_grows_by_one_stage():
    record = json.loads(json.dumps(card_record(full_card(figures={"tokens": 99}))))
    assert [stage["stage"] for stage in record["history"]] == ["projector", "mid"]
    assert record["origins"]["projector"] == {"name": "new, seed 0"}
    own = record["history"][-1]
    assert own["figures"] == {"tokens": 99}
    assert not own.keys() & {"history", "origins", "init"}
    again = render_card({"stage": "next", **record}, OneVision(), is_intermediate=False)
    assert "| setting | projector | mid | next |" in again


def test_paths_are_cut():
    assert without_paths("/srv/models/base and org/name, ~/x/y") == "base and org/name, y"
    assert without_paths("https://a.org/b") == "https://a.org/b"
    assert last_names("/srv/runs/r/final_image/hf") == "final_image/hf"
    assert last_names("runs/parts/tower/") == "tower"
