"""Sampling by the golden cases, mixture files in both forms, their faults."""

import json
from pathlib import Path

import pytest

from llava_train.config.load import load
from llava_train.config.mixture import UNRELEASED, SourceConfig, load_mixture, stage_sources
from llava_train.config.sampling import parse_sampling
from llava_train.config.shipped_files import shipped_mixtures
from llava_train.shared.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sampling.json").read_text())["cases"]
STRICT = ("end", "first", "firts:3", "First:3", "first:-2", "", "end:0", "end:0%")  # here the original is to be mended


def test_sampling_takes_what_the_original_takes():
    cases = [case for case in GOLDEN if case["strategy"] not in STRICT and not case.get("error")]
    assert len(cases) >= 15
    for case in cases:
        taken = list(list(parse_sampling(case["strategy"]).select(case["n"], (0, "s"))))
        assert len(taken) == case["count"], case
        if case.get("ids") is not None:
            assert taken == case["ids"]


@pytest.mark.parametrize(
    ("text", "num_records", "taken"),
    [
        ("all", 3, [0, 1, 2]),
        ("first:2", 3, [0, 1]),
        ("first: 2", 3, [0, 1]),
        ("last:2", 3, [1, 2]),
        ("end:33%", 10, [6, 7, 8, 9]),
        ("last:0", 3, []),
        ("end:0%", 3, []),
        ("first:0.5%", 201, [0, 1]),
        ("first:0.1%", 1000, [0]),
        ("first:29%", 100, list(range(29))),
        ("random:0", 3, []),
    ],
)
def test_sampling_by_hand(text, num_records, taken):
    assert list(parse_sampling(text).select(num_records, (0, "s"))) == taken


def test_random_sampling_depends_on_seed_and_name_alone():
    draw = parse_sampling("random:50%").select
    first = draw(100, (0, "a"))
    assert len(set(first)) == 50
    assert first == sorted(first)
    assert set(first) <= set(range(100))
    assert first == draw(100, (0, "a"))
    assert len({tuple(first), tuple(draw(100, (1, "a"))), tuple(draw(100, (0, "b")))}) == 3


@pytest.mark.parametrize(
    "text", ["", "first", "end", "firts:3", "First:3", "first:-2", "first:1.5", "first:%", "all:3", "5"]
)
def test_sampling_refuses_what_it_does_not_know(text):
    with pytest.raises(ValueError, match="allowed: all, first:N"):
        parse_sampling(text)


def test_sampling_over_all_points_at_repeat():
    with pytest.raises(ValueError, match="repeat: N"):
        parse_sampling("first:101%")


@pytest.mark.parametrize(("name", "count"), [("mid", 8), ("single_image", 90), ("onevision", 82)])
def test_the_published_mixtures_are_whole(name, count):
    assert len(load_mixture(name)) == count


def test_licences_stand_where_the_publisher_gives_one():
    published = [
        source for name in ("projector", "mid", "single_image", "onevision") for source in load_mixture(name).values()
    ]
    silent = {source.repository.split(":")[0] for source in published if not source.licence}
    recaptioned = {f"lmms-lab/LLaVA-ReCap-{size}" for size in ("118K", "558K", "CC3M")}
    assert silent == {UNRELEASED, "Zhiqiang007/MathV360K", *recaptioned}
    assert not any(source.licence for source in published if source.repository == UNRELEASED)
    made_here = [
        source
        for name in shipped_mixtures()
        if name.startswith(("demo", "tiny"))
        for source in load_mixture(name).values()
    ]
    assert made_here
    assert all(source.licence for source in made_here)


def mixture(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mix.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_our_form_is_read(tmp_path):
    first = "{file: x/a.json, media_root: m, sampling: 'first:10%', repeat: 2, repository: org/a, licence: MIT}"
    text = f"sources:\n  a: {first}\n  b: {{file: b.jsonl}}\n"
    assert load_mixture(mixture(tmp_path, text)) == {
        "a": SourceConfig("x/a.json", "m", "first:10%", 2, "org/a", "MIT"),
        "b": SourceConfig("b.jsonl", "", "all", 1, ""),
    }


def test_the_original_form_is_read(tmp_path):
    entries = [
        "{json_path: x/a.json, sampling_strategy: 'end:20%'}",
        "{json_path: y/a.json}",
        "{json_path: /z/b.jsonl}",
    ]
    text = f"datasets: [{', '.join(entries)}]\n"
    assert load_mixture(mixture(tmp_path, text)) == {
        "x/a": SourceConfig("x/a.json", sampling="end:20%"),
        "y/a": SourceConfig("y/a.json"),
        "b": SourceConfig("/z/b.jsonl"),
    }


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("sources: {a: {file: a.json}, a: {file: b.json}}", "mix.yaml", "each key stands once"),
        ("sources: {a: {file: a.json, file: b.json}}", "mix.yaml", "each key stands once"),
        ("datasets: [{json_path: a.json}, {json_path: a.json}]", "mix.yaml: a", "repeat: N"),
        ("sources: {a: {file: a.json, sampling: 'firts:3'}}", "mix.yaml: a.sampling", "allowed: all, first:N"),
        ("sources: {a: {file: a.json, repeat: 0}}", "mix.yaml: a.repeat", "1 or more"),
        ("sources: {a: {flie: a.json}}", "mix.yaml: sources.a.flie", "did you mean sources.a.file?"),
        ("sources: {a: {file: 3}}", "mix.yaml: sources.a.file", "a text"),
        ("sources: {}", "mix.yaml: sources", "at least one"),
        ("source: {}", "mix.yaml: source", "did you mean sources?"),
        ("[a, b]", "mix.yaml: top level", "a mapping of sources"),
        ("sources: [", "mix.yaml", "mend that line"),
    ],
)
def test_a_faulty_mixture_is_named(tmp_path, text, key, remedy):
    with pytest.raises(ConfigError) as caught:
        load_mixture(mixture(tmp_path, text))
    fault = caught.value.faults[0]
    assert fault.key.endswith(key)
    assert remedy in fault.remedy


def test_an_unknown_mixture_is_named_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        load_mixture("onevison")
    assert caught.value.faults[0].remedy == "did you mean onevision?"


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    return load(["+recipe=tiny", "data.root=root", "data.file=own.json"])


def test_a_file_of_ones_own_replaces_the_mixture(own, tmp_path):
    for place in (Path("own.json"), Path("root/own.json")):
        place.write_text("[]")
        sources = stage_sources(own.data, own.stages["onevision"])
        assert sources == {"own": SourceConfig(file=str(place), media_root="root")}
        place.unlink()


def test_a_mixture_of_ones_own_is_relative_to_the_root(own, tmp_path):
    own.data.file = mixture(tmp_path, "sources: {a: {file: x/a.json, media_root: m}}")
    assert stage_sources(own.data, own.stages["onevision"]) == {"a": SourceConfig("root/x/a.json", "root/m")}
