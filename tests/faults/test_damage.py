"""A damaged checkpoint is named and never loaded; the run falls back to the last whole one, or says the way out."""

import json
import random
import shutil

import pytest
from jobs import STAGE, Job, assert_identical, checkpoints, step_folders, zero
from runs import metrics

from llava_train.train.checkpoint.on_disk import damage

SETTINGS = (zero(2), checkpoints(every=1, keep=6))


def flip(path, draw: random.Random) -> None:
    """One bit of the file, anywhere."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed with six checkpoints; not to be changed."""
    folder = tmp_path_factory.mktemp("killed")
    job = Job(folder, *SETTINGS)
    job.wait_for_step(8)
    job.kill()
    for partial in job.stage.glob("*.partial"):
        shutil.rmtree(partial)
    assert len(step_folders(folder)) == 6
    return folder


@pytest.fixture
def copy(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "run")


def test_a_run_passes_over_every_kind_of_damage_to_the_last_whole_checkpoint(copy, unbroken):
    draw = random.Random(0)
    *_, whole, fifth, fourth, third, second, newest = step_folders(copy)
    [weights] = newest.glob("weights-*")
    truncate(weights)
    [weights] = second.glob("weights-*")
    flip(weights, draw)
    [optimizer] = third.glob("optimizer-*")
    flip(optimizer, draw)
    flip(fourth / "state.json", draw)
    [optimizer] = fifth.glob("optimizer-*")
    optimizer.unlink()
    told = " ".join(Job(copy, *SETTINGS).end().split())
    for folder, problem in [
        (newest, "bytes instead of"),
        (second, f"{weights.name} is not as it was written"),
        (third, f"{optimizer.name} is not as it was written"),
        (fourth, "state.json is missing, or not as it was written"),
        (fifth, f"{optimizer.name} is missing"),
    ]:
        line = next(line for line in told.split("damaged: ") if folder.name in line)
        assert problem in line
        assert "set aside" in line
        assert (copy / STAGE / f"{folder.name}.damaged").is_dir()
    assert f"continued after step {int(whole.name[-8:])}" in told
    assert_identical(copy, unbroken(zero(2)))


def test_without_a_whole_checkpoint_the_run_says_the_way_out(copy):
    lines = metrics(copy)
    for folder in step_folders(copy):
        next(folder.glob("weights-*")).unlink()
    told = " ".join(Job(copy, *SETTINGS).end(2).split())
    assert "no checkpoint of" in told
    assert "begin the stage anew: remove the stage's folder" in told
    assert "Traceback" not in told
    assert metrics(copy) == lines


def test_damage_to_what_does_not_train_is_an_error_with_the_way_out(copy):
    base = copy / STAGE / "base"
    truncate(base / "tokenizer.json")
    told = " ".join(Job(copy, *SETTINGS).end(2).split())
    assert "tokenizer.json has" in told
    assert "put it back, or begin the stage anew" in told
    assert len(step_folders(copy)) == 6  # none is set aside for it


def test_any_bit_of_any_file_is_missed(killed, tmp_path):
    draw = random.Random(1)
    for whole in (step_folders(killed)[-1], killed / STAGE / "base"):
        folder = tmp_path / whole.name
        shutil.copytree(whole, folder)
        assert damage(folder) == ""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert len(files) > 2
        for path in files:
            content = path.read_bytes()
            meaning = json.loads(content) if path.name in ("state.json", "manifest.json") else None
            for _ in range(20):
                flip(path, draw)
                if not (meaning and same_meaning(path, meaning)):
                    assert damage(folder), path
                path.write_bytes(content)
            truncate(path)
            assert damage(folder), path
            path.unlink()
            assert damage(folder), path
            path.write_bytes(content)


def same_meaning(path, meaning) -> bool:
    """A manifest whose blanks changed says what it said."""
    try:
        return json.loads(path.read_bytes()) == meaning
    except ValueError:
        return False
