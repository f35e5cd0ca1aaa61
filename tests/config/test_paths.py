"""`~` in settings that are paths, and what may not be left in one."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from llava_train.config import schema
from llava_train.config.load import load, load_verb
from llava_train.config.mixture import load_mixture
from llava_train.config.paths import path_fields
from llava_train.config.typed import build
from llava_train.shared.errors import ConfigError

NAMES = re.compile(
    r"dir|root|file|out|init|language_model|vision_tower|adapter|images|videos?|before|after|original|base"
)
NO_PATHS = {  # fields of such a name that hold no path
    *("LearningRates.vision_tower", "LearningRates.language_model", "LoraConfig.init", "DataConfig.decode_timeout"),
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_setting_that_is_a_path_is_of_that_type():
    classes = [cls for cls in vars(schema).values() if isinstance(cls, type) and is_dataclass(cls)]
    found = {f"{cls.__name__}.{name}" for cls in classes for name in path_fields(cls)}
    texts = {
        f"{cls.__name__}.{name}"
        for cls in classes
        for name, kind in cls.__annotations__.items()
        if kind in ("str", "list[str]") and NAMES.fullmatch(name)
    }
    assert len(found) > 25
    assert texts - NO_PATHS == set()


def test_the_home_folder_is_put_in(home):
    words = ["+recipe=tiny", "run.dir=~/runs/a", "model.init=~/base", "data.file=~/a.csv", "data.root=~/d"]
    config = load([*words, "data.cache=~", "+evaluation.tasks.t.file=~/t.json", "+evaluation.tasks.t.limit=0"])
    assert (config.run.dir, config.model.init) == (f"{home}/runs/a", f"{home}/base")
    assert (config.data.file, config.data.root, config.data.cache) == (f"{home}/a.csv", f"{home}/d", str(home))
    assert config.evaluation.tasks["t"].file == f"{home}/t.json"
    mixture = home / "mix.yaml"
    mixture.write_text("sources:\n  a: {file: ~/a.json, media_root: ~/media}\n")
    source = load_mixture(str(mixture))["a"]
    assert (source.file, source.media_root) == (f"{home}/a.json", f"{home}/media")


def test_verbs_without_a_recipe_put_it_in_too(home):
    config = load_verb(schema.GenerateConfig, ["model.init=~/m", "prompt=~ is a tilde", "images=[~/a.png,b~.png]"])
    assert (config.model.init, config.images) == (f"{home}/m", [f"{home}/a.png", "b~.png"])
    assert config.prompt == "~ is a tilde"


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("~nobody-of-that-name/x", "~nobody-of-that-name"),
        ("runs/~/x", "~"),
        ("${HOME}/x", "${HOME}"),
        ("a/${oc.env:HOME}", "${oc.env:HOME}"),
        ("$HOME/x", "$HOME"),
    ],
)
def test_what_nothing_replaces_is_refused_by_key(home, value, left):
    with pytest.raises(ConfigError) as caught:
        load(["+recipe=tiny", f"run.dir={value}", f"data.file={value}/a.csv"])
    faults = {fault.key: fault.problem for fault in caught.value.faults}
    assert f"still holds {left}," in faults["run.dir"]
    assert "data.file" in faults


def test_a_path_in_a_list_is_named_by_its_place(home):
    faults = []
    build(schema.CompareConfig, {"before": "a", "after": ["b", "~/c", "${d}"]}, "", faults)
    assert [fault.key for fault in faults] == ["after[2]"]
