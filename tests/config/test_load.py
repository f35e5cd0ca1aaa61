"""Command line to config: values as written, own recipes, all faults at once."""

from pathlib import Path

import pytest

from llava_train.config.command_line import split_list
from llava_train.config.load import load, load_verb
from llava_train.config.schema import GenerateConfig
from llava_train.shared.errors import ConfigError, Fault


def faults_of(*words: str) -> list[Fault]:
    with pytest.raises(ConfigError) as caught:
        load(list(words))
    return caught.value.faults


def keys_of(*words: str) -> list[str]:
    return [fault.key for fault in faults_of(*words)]


AWKWARD = [
    "it's here",
    'a "quoted" name',
    "one,two",
    "a b  c",
    "图像 模型",
    "key=value",
    "time: 12:30",
    "${run.name}",
    "\\${run.name}\\",
    "[a,b]",
    "{a: b}",
    "null",
    "1e-5",
    "~/models/x",
    "'",
    "",
    "two\nlines",
]


def test_texts_arrive_as_written():
    texts = [text for text in AWKWARD if "${" not in text]  # a path may not hold that
    values = {f"evaluation.tasks.task{i}.file": f"x{text}.json" for i, text in enumerate(texts)}
    limits = [f"+evaluation.tasks.task{i}.limit=0" for i in range(len(texts))]
    config = load(["+recipe=tiny", *limits, *(f"+{key}={value}" for key, value in values.items())])
    assert [task.file for task in config.evaluation.tasks.values()] == list(values.values())


def test_a_text_of_each_field_arrives_as_written():
    config = load(["+recipe=tiny", "data.root=[a: b]", "model.language_model=it's", "stages.onevision.mixture=a=b,c"])
    assert (config.data.root, config.model.language_model) == ("[a: b]", "it's")
    assert config.stages["onevision"].mixture == "a=b,c"


@pytest.mark.parametrize("text", AWKWARD)
def test_prompts_arrive_as_written(text):
    asked = load_verb(GenerateConfig, ["model.init=m", f"prompt=?{text}", f"system={text}"])
    assert (asked.prompt, asked.system) == (f"?{text}", text)


def test_a_text_is_seen_by_interpolations_and_not_read_by_them():
    assert load(["+recipe=tiny", "run.name=it's {x}"]).run.dir == "runs/it's {x}"
    with pytest.raises(ConfigError, match=r"run\.dir: runs/it's \$\{x\} still holds \$\{x\}"):
        load(["+recipe=tiny", "run.name=it's ${x}"])


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("[]", []),
        ("[a.png,b.png]", ["a.png", "b.png"]),
        ("[ a.png , b c.png ]", ["a.png", "b c.png"]),
        ("['a,b.png',c.png]", ["a,b.png", "c.png"]),
        ('[c.png, "a,b.png"]', ["c.png", "a,b.png"]),
        ("[it's.png,'tis.png]", ["it's.png", "'tis.png"]),
        ("['it's, here.png',图.png]", ["it's, here.png", "图.png"]),
        ("[a=b: $(c).png]", ["a=b: $(c).png"]),
    ],
)
def test_lists_of_texts_split_on_commas_outside_quotes(text, entries):
    assert split_list(text) == entries
    assert load_verb(GenerateConfig, ["model.init=m", "prompt=?", f"images={text}"]).images == entries


def test_a_list_without_brackets_names_the_form():
    with pytest.raises(ConfigError) as caught:
        load_verb(GenerateConfig, ["model.init=m", "prompt=?", "images=a.png"])
    assert caught.value.faults[0].key == "images"
    assert "[a.png]" in caught.value.faults[0].problem


def test_values_that_are_no_texts_follow_the_grammar():
    config = load(
        [
            "+recipe=tiny",
            "stages.projector.learning_rate.projector=1e-5",
            "stages.projector.learning_rate.vision_tower=2",
            "stages.projector.gradient_checkpointing=true",
            "stages.onevision.image.grid=[[1,3]]",
            "stages.onevision.zero={level: 3}",
            "log.trackers=[wandb]",
        ]
    )
    first, last = config.stages.values()
    assert (first.learning_rate.projector, first.learning_rate.vision_tower) == (1e-5, 2.0)
    assert isinstance(first.learning_rate.vision_tower, float)
    assert first.gradient_checkpointing is True
    assert last.image.grid == [[1, 3]]
    assert (last.zero.level, last.zero.offload_optimizer) == (3, False)
    assert config.log.trackers == ["wandb"]


def test_entries_are_added_and_removed_by_name():
    config = load(["+recipe=tiny", "~stages.projector", "+evaluation.tasks.mine={file: a.json, limit: 2}"])
    assert list(config.stages) == ["onevision"]
    assert config.evaluation.tasks["mine"].limit == 2
    added = load(["+recipe=tiny", "+evaluation.tasks.mine.file=a, b.json", "+evaluation.tasks.mine.limit=0"])
    assert added.evaluation.tasks["mine"].file == "a, b.json"


def test_three_faults_in_one_command_are_three_errors_with_remedies():
    faults = faults_of(
        "+recipe=tiny", "run.sed=1", "stages.onevision.precision=fp61", "stages.onevision.zero.offload_parameters=true"
    )
    assert [(f.key, f.remedy) for f in faults] == [
        ("run.sed", "did you mean run.seed?"),
        ("stages.onevision.precision", "allowed: fp32 | bf16"),
        ("stages.onevision.zero.offload_parameters", "set stages.onevision.zero.level=3, or offload_parameters=false"),
    ]


@pytest.mark.parametrize(
    ("word", "key", "remedy"),
    [
        ("stage.onevision.epochs=1", "stage", "did you mean stages?"),
        ("stages.onevison.epochs=1", "stages.onevison", "did you mean stages.onevision?"),
        ("~stages.onevison", "stages.onevison", "did you mean stages.onevision?"),
        ("stages.onevision.learning_rat.projector=1", "stages.onevision.learning_rat", "learning_rate?"),
        ("+stages.onevision.epoch=1", "stages.onevision.epoch", "did you mean stages.onevision.epochs?"),
        ("global_batch_size=4", "global_batch_size", "stages.projector.global_batch_size or stages.onevision.global"),
        ("zzz=1", "zzz", "known here: run, model, data"),
        ("run.name.first=x", "run.name.first", "it is a text"),
        ("run.seed=one", "run.seed", "allowed: a whole number"),
        ("run.seed=1.5", "run.seed", "allowed: a whole number"),
        ("run.seed=true", "run.seed", "allowed: a whole number"),
        ("run.seed=null", "run.seed", "allowed: a whole number"),
        ("run.seed=1,2", "run.seed", "allowed: a whole number"),
        ("run.seed=[1", "run.seed", "allowed: a whole number"),
        ("run={seed: x}", "run.seed", "allowed: a whole number"),
        ("run=5", "run", "allowed: a mapping of name, dir, seed"),
        ("data.decode_timeout=.inf", "data.decode_timeout", "allowed: a number"),
        ("data.decode_timeout=inf", "data.decode_timeout", "allowed: a number"),
        (
            "stages.onevision.learning_rate.projector=frosen",
            "stages.onevision.learning_rate.projector",
            "a number or frozen",
        ),
        ("stages.onevision.zero.level=4", "stages.onevision.zero.level", "allowed: 0 | 1 | 2 | 3"),
        ("stages.onevision.image.grid=[[1,a]]", "stages.onevision.image.grid[0][1]", "allowed: a whole number"),
        ("log.trackers=[tb]", "log.trackers[0]", "allowed: wandb | tensorboard"),
        ("data.num_workers=${nothing}", "data.num_workers", "mend the ${...}"),
        ("~run.seed", "run.seed", "set it: run.seed=..., a whole number"),
        ("run.seed", "run.seed", "write KEY=VALUE"),
        ("--run.seed=1", "--run.seed=1", "write KEY=VALUE"),
        ("run..seed=1", "run..seed=1", "write KEY=VALUE"),
        ("model=onevision_7", "model", "did you mean onevision_7b?"),
        ("recipe=ov_stage", "recipe", "choose one"),
    ],
)
def test_each_wrong_word_is_named_with_its_remedy(word, key, remedy):
    faults = faults_of("+recipe=tiny", word)
    assert [fault.key for fault in faults] == [key]
    assert remedy in faults[0].remedy


def test_a_missing_or_unknown_recipe_is_named():
    assert "+recipe=NAME, one of all_stages, demo" in faults_of("run.seed=1")[0].remedy
    assert faults_of("+recipe=ov_stag")[0].remedy.startswith("did you mean ov_stage?")


def test_generate_takes_no_recipe_and_names_what_is_missing():
    with pytest.raises(ConfigError) as caught:
        load_verb(GenerateConfig, ["+recipe=ov_stage", "promt=x"])
    assert [(f.key, f.remedy) for f in caught.value.faults] == [
        ("recipe", "set model.init=DIR_OR_HUB_NAME, and leave this out"),
        ("promt", "did you mean prompt?"),
        ("model.init", "set it: model.init=..., a text"),
        (
            "prompt",
            "write 'prompt=What is shown?', or file=PROMPTS.jsonl out=ANSWERS.jsonl, or chat=true",
        ),
    ]


OWN = """\
defaults: [ov_stage, _self_]
run: {name: mine}
model: {init: "图's"}
stages:
  onevision:
    learning_rate: {vision_tower: frozen, projector: 1e-4}
    image: {grid: [[1, 2], [2, 1]]}
"""


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my recipes"
    folder.mkdir()
    (folder / "mine.yaml").write_text(OWN, encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", [["--config-dir", "my recipes"], ["--config-dir=my recipes"]])
def test_an_own_recipe_outside_the_checkout_derives_from_ours(own_folder, monkeypatch, form):
    monkeypatch.chdir(own_folder.parent)
    config = load([*form, "+recipe=mine", "model=onevision_0_5b"])
    assert (config.run.name, config.run.dir, config.model.init) == ("mine", "runs/mine", "图's")
    assert config.model.language_model == "Qwen/Qwen2-0.5B-Instruct"
    stage = config.stages["onevision"]
    assert (stage.learning_rate.vision_tower, stage.learning_rate.projector, stage.learning_rate.language_model) == (
        "frozen",
        1e-4,
        1e-5,
    )
    assert stage.image.grid == [[1, 2], [2, 1]]  # lists are replaced, mappings merged
    assert stage.global_batch_size == 256


def test_an_own_recipe_is_known_to_its_own_command_alone(own_folder):
    load(["--config-dir", str(own_folder), "+recipe=mine"])
    assert keys_of("+recipe=mine") == ["recipe"]


def test_a_recipe_name_may_hold_spaces_and_other_letters(own_folder):
    (own_folder / "it's 我的.yaml").write_text(OWN, encoding="utf-8")
    assert load(["--config-dir", str(own_folder), "+recipe=it's 我的"]).run.name == "mine"


@pytest.mark.parametrize(
    ("name", "text", "key", "remedy"),
    [
        ("mine", "run: {name: a}\nrun: {name: b}\n", "mine.yaml", "each key stands once"),
        ("mine", "run: [\n", "mine.yaml", "mend that line"),
        ("mine", "- run\n", "mine.yaml", "a recipe is a mapping"),
        ("mine", "defaults: [ov_stag]\n", "recipe mine", "mine.yaml"),
        ("ov_stage", OWN, "recipe ov_stage", "give it another name"),
        (
            "mine",
            OWN.replace("grid", "gird"),
            "stages.onevision.image.gird",
            "did you mean stages.onevision.image.grid?",
        ),
        (
            "mine",
            OWN + "evaluation: {tasks: {a: {file: '???', limit: 0}}}\n",
            "tasks.a.file",
            "set it: evaluation.tasks.a.file=...",
        ),
        ("mine", OWN + "    epochs: ${nothing}\n", "stages.onevision.epochs", "mend the ${...} in it"),
        ("mine", OWN + "  extra: 5\n", "stages.extra", "a mapping of mixture"),
    ],
)
def test_a_faulty_own_recipe_is_named(tmp_path, name, text, key, remedy):
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    faults = faults_of("--config-dir", str(tmp_path), f"+recipe={name}")
    fault = next(fault for fault in faults if fault.key.endswith(key))
    assert remedy in fault.remedy


def test_own_recipes_need_a_folder_that_holds_some(tmp_path):
    assert faults_of("--config-dir", str(tmp_path / "none"), "+recipe=tiny")[0].problem.startswith("no folder")
    assert faults_of("--config-dir", str(tmp_path), "+recipe=tiny")[0].problem.startswith("no .yaml file")
    assert faults_of("+recipe=tiny", "--config-dir")[0].remedy == "write --config-dir my_recipes"


def test_a_part_that_is_missing_names_the_fields_it_needs():
    needed = ["log.every", "log.trackers"]
    assert keys_of("+recipe=tiny", "~log") == needed


def test_an_added_stage_names_all_that_it_lacks():
    keys = keys_of("+recipe=tiny", "+stages.more.epochs=1")
    assert "stages.more.mixture" in keys
    assert "stages.more.learning_rate.projector" in keys
    assert "stages.more.epochs" not in keys


def test_hydra_values_may_refer_to_others():
    assert load(["+recipe=tiny", "run.seed=5", "log.every=${run.seed}"]).log.every == 5
