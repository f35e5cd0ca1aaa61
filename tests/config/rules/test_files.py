"""`check`'s look at the disk: sources, held-out questions, records for one batch."""

import json
from pathlib import Path

import pytest

from llava_train.config.load import load
from llava_train.config.rules.files import check_files, count_records
from llava_train.config.schema import Config
from llava_train.records.file_formats import COUNT_LIMIT
from llava_train.shared.errors import Fault

MIXTURE = """\
sources:
  here: {file: here.json, sampling: 'first:50%', repeat: 3}
  lines: {file: lines.jsonl, media_root: media}
  gone: {file: gone.json, repository: org/gone}
  secret: {file: secret.json, repository: unreleased}
"""


def only_fault(config: Config) -> Fault:
    _, faults = check_files(config)
    assert len(faults) == 1, faults
    return faults[0]


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    """One stage of batch 4 whose four sources hold 9 and 2 samples, and two that are not there."""
    monkeypatch.chdir(tmp_path)
    Path("media").mkdir()
    Path("mix.yaml").write_text(MIXTURE)
    Path("here.json").write_text(json.dumps([{}] * 6))
    Path("lines.jsonl").write_text("{}\n\n{}\n")
    return load(["+recipe=tiny", "~stages.projector", "stages.onevision.mixture=mix.yaml", "data.root=."])


@pytest.fixture
def whole(config) -> Config:
    """The same with nothing missing."""
    Path("gone.json").write_text("[]")
    Path("secret.json").write_text("[]")
    return config


def test_a_sound_run_has_no_fault_and_its_samples_are_counted(whole):
    records, faults = check_files(whole)
    assert faults == []
    assert records["onevision"].num_samples == 3 * 3 + 2


def test_each_missing_source_is_named_with_where_to_get_it(config):
    _, faults = check_files(config)
    assert [(f.key, f.problem) for f in faults] == [
        ("stages.onevision.mixture", "source gone: no file gone.json"),
        ("stages.onevision.mixture", "source secret: no file secret.json"),
    ]
    assert faults[0].remedy.startswith("download org/gone")
    assert faults[1].remedy.startswith("it was never released")
    assert all("data.allow_missing_sources=true" in fault.remedy for fault in faults)


def test_missing_sources_are_left_out_by_name_on_demand(config):
    config.data.allow_missing_sources = True
    records, faults = check_files(config)
    assert faults == []
    assert records["onevision"].left_out == ["gone", "secret"]


def test_a_mixture_of_which_nothing_is_there_is_refused_even_so(config, tmp_path):
    config.data.allow_missing_sources, config.data.root = True, str(tmp_path / "elsewhere")
    assert only_fault(config).problem == "not one of its sources is on disk"


def test_fewer_samples_than_a_batch_names_both_counts(whole):
    whole.stages["onevision"].global_batch_size = 12
    fault = only_fault(whole)
    assert fault.key == "stages.onevision.global_batch_size"
    assert fault.problem == "11 samples are fewer than one batch of 12"
    assert "global_batch_size=11" in fault.remedy


def test_files_without_a_record_are_named(whole):
    Path("here.json").write_text("[]")
    Path("lines.jsonl").write_text("\n")
    fault = only_fault(whole)
    assert (fault.key, fault.remedy[:12]) == ("stages.onevision.mixture", "give it some")
    assert fault.problem == "no record is taken of here, lines, gone, secret"


def test_a_file_too_large_to_count_is_not_opened(whole):
    with Path("here.json").open("wb") as file:
        file.truncate(COUNT_LIMIT + 1)
    records, faults = check_files(whole)
    assert faults == []
    assert records["onevision"].not_counted == ["here"]


@pytest.mark.parametrize(("text", "reason"), [("{}", "no list of records"), ("[1,", "line 1"), ("\xff", "decode")])
def test_a_file_that_is_no_list_of_records_is_named(whole, text, reason):
    Path("here.json").write_bytes(text.encode("latin-1"))
    fault = only_fault(whole)
    assert fault.problem.startswith("source here: here.json:")
    assert reason in fault.problem


def test_a_missing_media_folder_is_named(whole):
    Path("media").rmdir()
    assert only_fault(whole).problem == "source lines: no media folder media"


def test_a_missing_file_of_ones_own_names_its_setting(whole):
    whole.data.file = "mine.json"
    fault = only_fault(whole)
    assert (fault.key, fault.problem) == ("data.file", "source mine: no file mine.json")
    assert fault.remedy == "check data.file and data.root"


def test_a_missing_mixture_is_named(whole):
    whole.stages["onevision"].mixture = "none.yaml"
    assert only_fault(whole).problem == "none.yaml: no such mixture file"


def test_missing_held_out_questions_are_named(whole):
    config = load(["+recipe=tiny", "+evaluation.tasks.a={file: a.json, limit: 0}"])
    whole.evaluation = config.evaluation
    assert only_fault(whole).key == "evaluation.tasks.a.file"
    Path("a.json").write_text("[]")
    assert check_files(whole)[1] == []


def test_missing_held_out_samples_are_named(whole):
    whole.evaluation.every, whole.evaluation.file = 2, "mine.json"
    fault = only_fault(whole)
    assert (fault.key, fault.problem) == ("evaluation.file", "source mine: no file mine.json")
    assert "evaluation.held_out=0.05" in fault.remedy
    whole.evaluation.file = "none.yaml"
    assert only_fault(whole).problem == "none.yaml: no such mixture file"
    Path("mine.json").write_text("[]")
    whole.evaluation.file = "mine.json"
    assert check_files(whole)[1] == []


def test_counting_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"\.json \.jsonl"):
        count_records(tmp_path / "a.txt")


MISNAMED = {
    "list under JSONL": ("lines.jsonl", b'[{"id": 1},\n{"id": 2}]', "holds a JSON list under", "call it lines.json"),
    "lines under JSON": ("here.json", b'{"id": 1}\n{"id": 2}\n', "holds a record a line under", "call it here.jsonl"),
    "a mapping": ("here.json", b'{\n"data": []}', "is JSON, but no list of records", "mend the file"),
    "UTF-16": ("here.json", "[{}]".encode("utf-16"), "is UTF-16", "iconv -f UTF-16 -t UTF-8 here.json"),
    "UTF-16 without mark": ("lines.jsonl", "{}".encode("utf-16-le"), "is UTF-16", "iconv -f UTF-16"),
    "UTF-32": ("here.json", "[]".encode("utf-32"), "is UTF-32", "iconv -f UTF-32"),
    "gzip": ("lines.jsonl", b"\x1f\x8b\x08", "is compressed by gzip", "unpack it"),
    "Parquet": ("here.json", b"PAR1", "is Parquet", "give it the name"),
}


@pytest.mark.parametrize(("name", "content", "problem", "remedy"), MISNAMED.values(), ids=MISNAMED)
def test_a_file_that_its_name_belies_is_told_with_the_remedy(whole, name, content, problem, remedy):
    Path(name).write_bytes(content)
    fault = only_fault(whole)
    assert f"{name}: {problem}" in fault.problem
    assert remedy in fault.remedy


def test_many_missing_sources_are_one_fault(config):
    names = [f"s{i}" for i in range(9)]
    entries = [f"  {n}: {{file: {n}.json, repository: {'unreleased' if n == 's0' else 'org/x'}}}" for n in names]
    Path("mix.yaml").write_text("\n".join(["sources:", "  here: {file: here.json}", *entries]))
    fault = only_fault(config)
    assert fault.problem == "9 of 10 sources are not on disk: s0, s1, s2 and 6 more"
    assert "download_source.py mix.yaml s1 s2 s3 ... --root ." in fault.remedy
    assert "data.allow_missing_sources=true" in fault.remedy
