"""The front door as a user sees it: exit codes, no traceback, from any folder, without the heavy libraries."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from llava_train.cli.main import help_text, main, pick_verb

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
REPOSITORY = Path(__file__).parents[2]


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-X", "importtime", "-m", "llava_train", *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


def messages(stderr: str) -> str:
    return "\n".join(line for line in stderr.splitlines() if not line.startswith("import time:"))


def own_data(folder: Path) -> list[str]:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llava_onevision"}')
    (folder / "model" / "vocab.json").write_text("{}")
    save_file({}, folder / "model" / "model.safetensors")
    (folder / "it's, data.json").write_text(json.dumps([RECORD] * 300))
    return ["model.init=model", "data.file=it's, data.json", "data.root=."]


def test_check_works_from_any_folder_and_loads_no_heavy_library(tmp_path):
    done = command("check", "+recipe=ov_stage", "model=onevision_0_5b", *own_data(tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ov_stage-0_5b: no faults" in done.stdout
    assert "300 samples" in done.stdout
    assert "2, each of 256 samples" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"hydra", "llava_train"} <= imported
    assert not {"torch", "transformers", "deepspeed"} & imported


def test_training_loads_no_library_that_only_some_runs_need():
    modules = (
        "ranks.process_group",
        "train.build",
        "train.engine.engine",
        "train.report.end_of_run",
        "train.run.stages",
    )
    late = {"peft", "bitsandbytes", "wandb", "matplotlib", "tensorboard", "av", "decord"}
    imports = "; ".join(f"import llava_train.{module}" for module in modules)
    program = f"import sys; {imports}; print(*({late} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == []


def test_check_takes_held_out_samples_off_the_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["check", "+recipe=ov_stage", *own_data(tmp_path), "evaluation.every=1"]
    for held_out, steps in ((256, 1), (0.5, 1), (1, 2)):
        assert main([*words, f"evaluation.held_out={held_out}"]) == 0
        assert f"{steps}, each of 256 samples" in capsys.readouterr().out


def test_faults_end_in_exit_code_2_without_a_traceback(tmp_path):
    words = ["run.sed=1", "log.every=0", "data.file=none.json"]
    done = command("check", "+recipe=tiny", *words, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    text = messages(done.stderr)
    assert "Traceback" not in text
    for part in ("run.seed?", "log.every: 0 is out of range", "no file none.json", "3 errors"):
        assert part in text


def test_help_teaches_without_importing_a_heavy_library(tmp_path):
    done = command("--help", folder=tmp_path)
    assert done.returncode == 0
    for part in ("check", "preview", "generate", "ov_stage", "data.file=FILE", "--config-dir my_recipes"):
        assert part in done.stdout
    assert "torch" not in done.stderr


def test_help_fits_a_terminal_and_names_every_recipe():
    text = help_text()
    recipes = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml"))
    assert recipes
    assert all(f"  {name} " in text for name in recipes)
    assert max(map(len, text.splitlines())) <= 120


def test_no_words_print_the_help_and_fail(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_a_path_longer_than_any_is_no_traceback(capsys):
    assert main(["check", "+recipe=tiny", f"model.init={'a' * 300}"]) == 2
    assert "longer name than a file has: aaa" in capsys.readouterr().err


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["chekc", "+recipe=tiny"]) == 2
    assert capsys.readouterr().err == "no verb chekc\n    -> did you mean check?\n"
    assert main(["zzz"]) == 2
    assert "known: train, check" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["+recipe=tiny", "recipe=tiny", "--config-dir", "~stages.a"])
def test_no_verb_means_train(first):
    assert pick_verb([first, "a=b"]) == ("train", [first, "a=b"])


def test_one_rank_tells_what_is_the_same_on_all(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["check", "run.seed=1"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["--help"], ["check", "+recipe=tiny", "data.file=none.json"]])
def test_a_reader_that_leaves_ends_it_without_a_traceback(tmp_path, words):
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-c", "from llava_train.cli.main import main; raise SystemExit(main())", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with open(write, "wb") as gone:
        streams = {"stdout": gone, "stderr": subprocess.PIPE if words == ["--help"] else gone}
        done = subprocess.run(line, cwd=tmp_path, env=environment, **streams, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGPIPE
    assert not done.stderr


def test_a_fault_of_all_stages_is_told_once(capsys):
    assert main(["check", "+recipe=tiny", "data.file=none.json"]) == 2
    assert capsys.readouterr().err.startswith("1 error in the configuration:")
    assert main(["preview", "+recipe=tiny", "data.file=none.json"]) == 2
    assert capsys.readouterr().err.count("no file none.json") == 1
