"""At ZeRO 3 each rank reads its start into its own shards, tensor by tensor: the same weights, bit for bit."""

from part_folders import write_parts
from test_equivalence import FOUR_PACKS, SETTINGS, ZERO, assert_same_outcome, outcome

ADAPTERS = "stages.onevision.lora={language_model:{rank:4,alpha:8}} "
NUM_PARAMETERS = 68  # of the tiny model


def test_a_start_read_into_shards_is_the_one_read_whole(torchrun, tmp_path):
    parts = write_parts(tmp_path / "parts", "vicuna")
    joined = f"model.init='' model.language_model={parts.language_model} model.vision_tower={parts.vision_tower} "
    starts = [
        "",
        "stages.onevision.precision=bf16",
        ADAPTERS,
        ADAPTERS.replace("rank:4", "rank:4,dora:true"),
        joined + "stages.onevision.template=vicuna",
    ]
    settings = f"run.dir={tmp_path / 'run'} stages.onevision.zero.level=3"
    printed = torchrun(2, "unread_worker.py", *(f"{settings} {start}" for start in starts))
    told = [int(line.split()[1]) for line in printed.splitlines() if line.startswith("UNREAD")]
    *plain, dora, joined = told
    assert plain == [NUM_PARAMETERS] * 3
    assert dora == 0, "its norms are those of the weights"
    assert 0 < joined < NUM_PARAMETERS, "embeddings that get new rows are read, and so is a new projector"


def test_every_zero_level_trains_the_same_from_parts(torchrun, tmp_path):
    """tests/model/loading/test_lazy_weights.py compares the weights of every kind of start before training."""
    starts = {
        "tied": ({"tie_word_embeddings": True, "max_shard_size": "100KB"}, ("zero0", "zero1", "zero2", "zero3")),
        "untied": ({"vocab_size": 1088}, ("zero2", "zero3")),  # rows enough for <image> and <video>
    }
    lines = []
    for name, (changes, levels) in starts.items():
        model = write_parts(tmp_path / name, "vicuna", **changes)
        parts = f"model.init='' model.language_model={model.language_model} model.vision_tower={model.vision_tower} "
        settings = f"{parts} stages.onevision.template=vicuna {SETTINGS} {FOUR_PACKS} stages.onevision.max_steps=2"
        lines += [f"run.dir={tmp_path / name / level} {settings} {ZERO[level]}" for level in levels]
    torchrun(2, "run_worker.py", *lines)
    for name, (_, [first, *others]) in starts.items():
        expected = outcome(tmp_path / name / first)
        assert expected[0][0] != expected[0][1]
        for level in others:
            assert_same_outcome(outcome(tmp_path / name / level), expected, f"{name} {level}")
