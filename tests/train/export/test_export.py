"""A folder from a run's own files: the same from any number of ranks, proved, whole or absent."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from stage_folders import STEP, write_slices, write_stage
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from llava_train.cli.main import main
from llava_train.model.files.tensor_names import export_name
from llava_train.model.hf_folder import check_export, weights
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config, tiny_model
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.train.export.export import CHUNK, export_checkpoint
from llava_train.train.trainer import Trainer

TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config(TOKENIZER, tied=False))


def export(stage_dir, out):
    return export_checkpoint(stage_dir, stage_dir / f"step-{STEP:08d}", out)


def files(folder):
    """All but what tells times and sizes of this process."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "export.json"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_number_of_ranks_gives_the_same_folder(model, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("llava_train.train.export.export.CHUNK", 1000)
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 100_000)
    assert CHUNK > 1000
    seen = []
    for num_ranks in (1, 2, 3):
        stage_dir = write_stage(tmp_path / "run" / str(num_ranks), model, TOKENIZER, num_ranks, dtype=dtype)
        report = export(stage_dir, tmp_path / f"out-{num_ranks}")
        assert all(check["done"] for check in report["checks"]), report
        seen.append(files(tmp_path / f"out-{num_ranks}"))
    assert seen[0] == seen[1] == seen[2]
    stored = {}
    for path in (tmp_path / "out-3").glob("*.safetensors"):
        stored |= load_file(path)
    expected = {export_name(name): value.detach().to(dtype) for name, value in model.named_parameters()}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


def test_tied_folder_loads_with_the_weights_of_the_run(tmp_path):
    tied = tiny_model(tiny_config(TOKENIZER, tied=True))
    export(write_stage(tmp_path / "run", tied, TOKENIZER, 2), tmp_path / "out")
    again = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "out")
    ours, theirs = tied.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(("top", "inner"), [(True, False), (False, True)])
def test_a_start_tied_in_one_place_is_exported_tied_in_both(tmp_path, top, inner):
    """transformers 5 writes it at the top alone, older checkpoints in text_config alone."""
    settings = tiny_config(TOKENIZER, tied=True).to_dict()
    settings["tie_word_embeddings"], settings["text_config"]["tie_word_embeddings"] = top, inner
    tied = tiny_model(LlavaOnevisionConfig.from_dict(settings))
    report = export(write_stage(tmp_path / "run", tied, TOKENIZER), tmp_path / "out")
    assert all(check["done"] for check in report["checks"]), report
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert "_name_or_path" not in written
    assert written["tie_word_embeddings"] is written["text_config"]["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("config.json", {"image_token_index": 7}, "image_token_index is 7, not 259"),
        ("generation_config.json", {"eos_token_id": [0]}, "end token among those of generation_config.json is False"),
        ("chat_template.jinja", None, "chat template is False"),
    ],
)
def test_what_no_export_takes_ends_a_stage_before_its_first_step(model, tmp_path, name, change, told):
    stage_dir = write_stage(tmp_path / "run", model, TOKENIZER)
    stage = SimpleNamespace(stage=SimpleNamespace(folder=stage_dir), ranks=Ranks(0, 1, torch.device("cpu")))
    Trainer._refuse_what_no_export_takes(stage)
    path = stage_dir / "base" / name
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=f"could not be exported: {told}"):
        Trainer._refuse_what_no_export_takes(stage)


def test_a_stage_does_not_go_on_with_another_tokenizer(model, tmp_path):
    """Its weights are all in its checkpoint, so nothing else would tell."""
    stage_dir, other = write_stage(tmp_path / "run", model, TOKENIZER), byte_tokenizer()
    settings = SimpleNamespace(template="checkpoint")
    own = (stage_dir / "base/chat_template.jinja").read_bytes().decode()

    def resume(tokenizer, template):
        tokenizer.chat_template = template
        loaded = SimpleNamespace(tokenizer=tokenizer, folder=tmp_path / "start", sources={})
        stage = SimpleNamespace(folder=stage_dir, settings=settings)
        Trainer._refuse_another_start(SimpleNamespace(stage=stage, loaded=loaded), None)

    resume(other, own)
    with pytest.raises(RunError, match=r"chat template: that of .*base -> that of .*start"):
        resume(other, "{{ 'another' }}")
    settings.template = "qwen"
    resume(other, "{{ 'another' }}")
    other.add_tokens(["<loc79>"])
    with pytest.raises(RunError, match=r"tokenizer: 261 tokens of .*base -> 262 of .*start"):
        resume(other, own)


def test_report_and_card_tell_what_was_done(model, tmp_path, monkeypatch):
    monkeypatch.setattr(check_export, "available_memory", lambda: 10**6)
    stage_dir = write_stage(tmp_path / "run", model, TOKENIZER)
    report = export(stage_dir, tmp_path / "out")
    assert json.loads((tmp_path / "out/export.json").read_text()) == report
    assert (report["stage"], report["checkpoint"]) == ("onevision", "step-00000007")
    hashes, *others, logits = report["checks"]
    assert not logits["done"]
    assert "0.0 GB are left" in logits["told"]
    assert all(check["done"] for check in (hashes, *others))
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert (hashes["figures"]["tensors"], hashes["figures"]["bytes"]) == (len(list(model.parameters())), size)
    assert report["peak_host_bytes"]["checks done"] > size
    card = (tmp_path / "out/README.md").read_text()
    for text in ("stage onevision", "| captions | 28 |", "| training loss of the last step | 1.25 |", "projector/hf"):
        assert text in card
    assert str(tmp_path) not in card


def test_refused_export_leaves_the_folder_as_it_was(model, tmp_path, monkeypatch):
    stage_dir = write_stage(tmp_path / "run", model, TOKENIZER)
    export(stage_dir, tmp_path / "out")
    before = files(tmp_path / "out")
    write_weights = weights.write_weights

    def damaging(folder, *rest):
        hashes = write_weights(folder, *rest)
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return hashes

    monkeypatch.setattr("llava_train.train.export.export.write_weights", damaging)
    for out in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(RunError, match="tensor hashes"):
            export(stage_dir, out)
    assert files(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize("fault", ["lost", "twice", "shape", "gap"])
def test_files_that_are_not_the_model_are_refused(model, tmp_path, fault):
    stage_dir = write_stage(tmp_path / "run", model, TOKENIZER, trains=("lm_head",))
    step = stage_dir / f"step-{STEP:08d}"
    value = model.lm_head.weight.detach()
    wrong = {"lost": {}, "twice": {"lm_head.weight": value, "model.image_newline": model.model.image_newline.detach()}}
    wrong |= {"shape": {"lm_head.weight": value[1:]}, "gap": {"lm_head.weight": value}}
    write_slices(step, "weights", wrong[fault], 2 if fault == "gap" else 1)
    if fault == "gap":
        (step / "weights-00000-of-00001.safetensors").unlink()
        (step / "weights-00001-of-00002.safetensors").unlink()
    with pytest.raises(RunError, match="newline" if fault == "twice" else "lm_head.weight"):
        export(stage_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def run_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_stage(folder, model, TOKENIZER, 2)
    return folder


def test_command_takes_the_last_step_of_the_last_stage(run_dir, tmp_path, capsys):
    out = tmp_path / "out"
    for words in ([], ["stage=onevision", f"step={STEP}"]):
        assert main(["export", f"run.dir={run_dir}", f"out={out}", *words]) == 0
    assert "tensor hashes" in capsys.readouterr().out
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["step=8"], ("no checkpoint of step 8", "step=7")),
        (["step=-1"], ("step: -1", "0 for the latest")),
        (["stage=onevison"], ("no stage onevison", "did you mean onevision")),
        (["stage=projector"], ("stage projector has no checkpoint", "onevision")),
        (["out="], ("out: is empty", "out=DIR")),
        (["run.dir=nowhere"], ("no folder nowhere", "runs/NAME")),
        (["run.dir=."], ("is no run", "the folder of a run")),
        (["+recipe=tiny"], ("export reads no recipe", "run.dir=DIR out=DIR")),
    ],
)
def test_what_is_not_there_is_told_with_what_is(run_dir, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    set_before = [word for word in (f"run.dir={run_dir}", "out=out") if word.split("=")[0] not in words[0]]
    assert main(["export", *set_before, *words]) == 2
    printed = capsys.readouterr().err
    assert all(text in printed for text in told), printed
    assert not (tmp_path / "out").exists()


def test_what_is_no_export_is_not_replaced(run_dir, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "mine/notes.txt", run_dir / "onevision/base", run_dir):
        assert main(["export", f"run.dir={run_dir}", f"out={out}"]) == 2
        assert "holds no export" in capsys.readouterr().err
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["step-00000007/weights-00000-of-00002.safetensors", "base/config.json"])
def test_damaged_checkpoint_is_refused_by_name(model, tmp_path, capsys, name):
    path = write_stage(tmp_path / "run", model, TOKENIZER, 2) / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert main(["export", f"run.dir={tmp_path / 'run'}", f"out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert f"{path.parent} is damaged: {path.name} is not as it was written" in told
    assert ("put that file back" if path.parent.name == "base" else "take another") in told
    assert not (tmp_path / "out").exists()
