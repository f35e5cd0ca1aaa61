"""At ZeRO 3 each rank reads its start into its own shards, tensor by tensor: the same weights, bit for bit."""

from part_folders import write_parts

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
