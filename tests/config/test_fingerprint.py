"""What forbids to go on from a checkpoint, what does not, and the written config."""

import json
from pathlib import Path

import pytest
import yaml

from llava_train.config.fingerprint import changed_settings, dump, fingerprint, start_content, with_defaults
from llava_train.config.load import load

UNTOLD = [
    "run.name=other",
    "data.root=elsewhere",
    "data.decode_timeout=5",
    "preview.count=9",
    "stages.projector.epochs=7",
]
FREE = {
    "data.num_workers=3": "data.num_workers",
    "log.every=7": "log.every",
    "evaluation.batch_size=3": "evaluation.batch_size",
    "stages.onevision.checkpoint.every=5": "stages.onevision.checkpoint.every",
    "stages.onevision.pack.max_tokens=99": "stages.onevision.pack.max_tokens",
    "stages.onevision.gradient_checkpointing=false": "stages.onevision.gradient_checkpointing",
    "stages.onevision.zero.offload_optimizer=true": "stages.onevision.zero.offload_optimizer",
    "stages.onevision.zero.level=1": "stages.onevision.zero.level",
    "model.attention=sdpa": "model.attention",
}
BINDING = {
    "run.seed=1": "run.seed",
    "data.on_error=skip": "data.on_error",
    "data.max_pixels=5": "data.max_pixels",
    "data.video_decoder=decord": "data.video_decoder",
    "stages.onevision.max_steps=5": "stages.onevision.max_steps",
    "stages.onevision.learning_rate.projector=5": "stages.onevision.learning_rate.projector",
    "stages.onevision.image.grid=[[1,1]]": "stages.onevision.image.grid",
    "stages.onevision.label_rule=original": "stages.onevision.label_rule",
}


def of(*words: str, stage: str = "onevision", num_ranks: int = 1) -> dict:
    mixtures = ["stages.projector.mixture=mix.yaml", "stages.onevision.mixture=mix.yaml"]
    return fingerprint(load(["+recipe=tiny", *mixtures, *words]), stage, num_ranks)


def fixed(*words: str, stage: str = "onevision") -> dict:
    return of(*words, stage=stage)["fixed"]


def changed(saved: dict, now: dict) -> dict[str, list[str]]:
    """Keys that differ, by kind."""
    return {
        kind: [line.partition(":")[0] for line in changed_settings(saved[kind], now[kind])]
        for kind in ("fixed", "free")
    }


@pytest.fixture(autouse=True)
def mixture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mix.yaml").write_text("sources: {a: {file: a.json, sampling: 'first:3'}}")


def test_settings_of_speed_and_memory_are_told_by_name_and_do_not_bind():
    saved = of()
    for word, key in FREE.items():
        assert changed(saved, of(word)) == {"fixed": [], "free": [key]}
    assert changed(saved, of(num_ranks=2)) == {"fixed": [], "free": ["number of ranks"]}
    assert "version of torch" in saved["free"]


def test_what_changes_nothing_in_the_stage_is_not_told():
    assert changed(of(), of(*UNTOLD)) == {"fixed": [], "free": []}


def test_settings_of_numbers_and_order_bind_by_name():
    saved = of()
    for word, key in BINDING.items():
        assert changed(saved, of(word)) == {"fixed": [key], "free": []}


def test_packs_bind_where_they_decide_which_samples_a_step_has():
    tokens = ["stages.onevision.pack.unit=tokens", "stages.onevision.pack.per_step=8"]
    saved = of(*tokens)
    for name, value in (("per_step", 16), ("window", 64), ("max_tokens", 99), ("max_tiles", 99)):
        key = f"stages.onevision.pack.{name}"
        assert changed(saved, of(*tokens, f"{key}={value}")) == {"fixed": [key], "free": []}
    assert "stages.onevision.pack.unit" in changed(of(), saved)["fixed"]


def test_a_difference_names_both_values():
    assert changed_settings(fixed(), fixed("run.seed=1")) == ["run.seed: 0 -> 1"]
    assert changed_settings({"a": 1}, {"b": None}) == ["a: 1 -> not set", "b: not set -> None"]


def test_a_mixture_binds_by_what_it_holds():
    saved = of()
    Path("moved.yaml").write_text(Path("mix.yaml").read_text())
    assert of("stages.onevision.mixture=moved.yaml") == saved
    Path("mix.yaml").write_text("sources: {a: {file: a.json, sampling: 'first:4'}}")
    assert changed_settings(saved["fixed"], fixed()) == ["sources.a.sampling: first:3 -> first:4"]


def test_the_start_binds_the_first_stage_and_the_stage_before_binds_a_later_one():
    first = of(stage="projector")
    other = of("model.init=m", stage="projector")
    assert changed_settings(first["places"], other["places"]) == ["model.init: tiny -> m"]
    assert of("model.init=m") == of()
    assert fixed()["start"] == "stage projector"
    assert first["fixed"]["stage"] == "projector"


def test_a_place_is_what_a_path_leads_to(tmp_path):
    Path("base").mkdir()
    Path("data").mkdir()
    Path("link").symlink_to("base")
    Path("data/q.csv").write_text("")
    data = ["data.file=data/q.csv", "data.root=data"]
    places = of("model.init=base", *data, stage="projector")["places"]
    assert places == {"model.init": str(tmp_path / "base"), "data.file": str(tmp_path / "data/q.csv")}
    spelt = {"base/": "q.csv", "link": "data/../data/q.csv", str(tmp_path / "base"): str(tmp_path / "data/q.csv")}
    for start, file in spelt.items():
        words = [f"model.init={start}", f"data.file={file}", "data.root=data"]
        assert of(*words, stage="projector")["places"] == places
    Path("link").unlink()
    Path("other").mkdir()
    Path("link").symlink_to("other")
    assert of("model.init=link", *data, stage="projector")["places"] != places


def test_a_start_in_the_runs_own_folder_is_relative_to_it():
    for run in ("runs/a", "runs/b"):
        Path(run, "parts/start").mkdir(parents=True)
        found = of(f"model.init={run}/parts/start", f"run.dir={run}", stage="projector")["places"]
        assert found["model.init"] == "run.dir/parts/start"


def test_the_content_of_a_start_is_that_of_its_weights_config_and_tokenizer():
    def write(name: str, **files: str) -> str:
        Path(name).mkdir(exist_ok=True)
        for file, text in files.items():
            Path(name, file.replace("_json", ".json").replace("_st", ".safetensors")).write_text(text)
        return start_content(name)

    assert start_content("nowhere") == start_content("tiny") == ""
    first = write("a", config_json="{}", model_st="weights")
    assert write("b", config_json="{}", model_st="weights", llava_train_json="a note") == first
    assert write("b", model_st="Weights") != first
    assert write("c", config_json="{}", model_st="weights", tokenizer_json="{}") != first


def test_a_mixture_of_ones_own_binds_by_what_it_holds():
    saved = of("data.file=mix.yaml")
    Path("mix.yaml").write_text("sources: {a: {file: a.json, sampling: 'first:4'}}")
    assert changed_settings(saved["fixed"], of("data.file=mix.yaml")["fixed"]) == [
        "sources.a.sampling: first:3 -> first:4"
    ]


def test_a_fingerprint_survives_json():
    assert json.loads(json.dumps(of())) == of()


def test_the_written_config_holds_every_setting():
    config = load(["+recipe=tiny", "run.name=it's: 图"])
    written = yaml.safe_load(dump(config))
    assert written["run"] == {"name": "it's: 图", "dir": "runs/it's: 图", "seed": 0}
    assert list(written["stages"]) == ["projector", "onevision"]
    assert written["stages"]["projector"]["optimizer"]["epsilon"] == 1e-8


def test_what_is_held_out_binds_and_how_often_it_is_measured_does_not():
    saved = of("evaluation.every=5", "evaluation.held_out=0.1")
    other = of("evaluation.every=7", "evaluation.held_out=0.2", "evaluation.patience=2")
    assert changed(saved, other) == {
        "fixed": ["evaluation.held_out"],
        "free": ["evaluation.every", "evaluation.patience"],
    }
    without = of()
    assert not {"evaluation.held_out", "evaluation.file"} & set(without["fixed"] | without["free"])  # as in older runs


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("stages.s.pack.window", 1024),  # by the schema
        ("stages.s.lora.language_model.dora", False),
        ("evaluation.patience", 0),
        ("data.too_long", "error"),  # by configs/config.yaml
        ("log.every", 1),
    ],
)
def test_a_setting_that_is_newer_than_the_checkpoint_counts_as_its_default(key, default):
    saved = {"stages.s.lora.language_model.rank": 8, "other": 1}
    assert with_defaults(saved, {key: "now"}, saved) == saved | {key: default}
    for value, lines in ((default, []), ("now", [f"{key}: {default} -> now"])):
        now = saved | {key: value}
        assert changed_settings(with_defaults(saved, now, saved), now) == lines


def test_a_setting_that_counts_otherwise_now_has_the_value_of_the_checkpoint():
    key = "stages.s.pack.window"
    assert with_defaults({}, {key: 512}, {key: 256}) == {key: 256}


@pytest.mark.parametrize(
    "key", ["stages.s.max_steps", "stages.s.lora.projector.dora", "sources.a.file", "number of ranks"]
)
def test_what_has_no_default_is_not_set(key):
    saved = {"stages.s.lora.language_model.rank": 8}
    assert with_defaults(saved, {key: 1}, saved) == saved
    assert changed_settings(with_defaults(saved, saved | {key: 1}, saved), saved | {key: 1}) == [f"{key}: not set -> 1"]
