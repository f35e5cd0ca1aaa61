"""Ranks that differ, a folder that is not shared or not writable, too little room: all told at once, with the ranks."""

from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch

from llava_train.config.load import load
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.train import preflight
from llava_train.train.run.stages import all_stages


class Threads(Ranks):
    """Ranks that are threads of this process."""

    def gather(self, value):
        told[self.rank] = value
        barrier.wait(20)
        values = [told[rank] for rank in range(self.world_size)]
        barrier.wait(20)
        return values


told: dict = {}
barrier = Barrier(2)


def check(*words_of_rank: list[str]) -> list[str]:
    """What each of two ranks raised; empty where nothing."""
    raised = ["", ""]

    configs = [load(["+recipe=tiny", *words]) for words in words_of_rank]

    def run(rank: int) -> None:
        config = configs[rank]
        try:
            preflight.check(config, all_stages(config), Threads(rank, 2, torch.device("cpu")))
        except RunError as error:
            raised[rank] = str(error)

    threads = [Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return raised


def test_equal_ranks_pass_and_leave_nothing(tmp_path):
    words = [f"run.dir={tmp_path}"]
    assert check(words, words) == ["", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_all_faults_of_all_ranks_are_told_on_each(tmp_path):
    (tmp_path / "own.json").write_text("[]")
    first, second = check([f"run.dir={tmp_path}/a"], [f"run.dir={tmp_path}/b", f"data.file={tmp_path}/own.json"])
    assert first == second
    assert first.startswith("3 faults before the start:")
    for told in ("differ in their settings", "differ in their data", "b is not the folder that rank 0 writes to"):
        assert told in first
    assert "rank 1 on " in first


def test_data_counts_by_its_content(tmp_path):
    own = tmp_path / "own.json"
    config = load(["+recipe=tiny", f"data.file={own}"])
    found = []
    for text in ("[]", "{}", "[ ]"):
        own.write_text(text)
        found.append(preflight.facts(config)["data"])
    assert len(set(found)) == 3
    own.unlink()
    assert preflight.facts(config)["data"] not in found


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    words = [f"run.dir={tmp_path}/file/run", "model.init=" + str(Path("tiny"))]
    with pytest.raises(NotADirectoryError):
        Path(tmp_path, "file/run").mkdir()
    assert "run.dir: cannot be written" in check(words, words)[0]


def test_memory_that_the_states_alone_exceed_is_told():
    needs = {"mid": (30e9, 0.0), "onevision": (90e9, 0.0)}
    [fault] = preflight.memory_faults(needs, int(79e9))
    assert "onevision keeps 90.0 GB on each GPU, and 79.0 GB are free" in fault
    assert not list(preflight.memory_faults(needs, None))


def test_a_disk_without_room_for_a_checkpoint_is_told(tmp_path):
    (tmp_path / "token").touch()
    [fault] = preflight._folder_faults(tmp_path, "token", {"mid": (0.0, 1e6), "onevision": (0.0, 1e18)})
    assert "a checkpoint of stage onevision takes 1000000000.0 GB" in fault
