"""The model's states as `plan` counts them, against what DeepSpeed holds on two ranks."""

import json

import pytest

from llava_train.config.load import load
from llava_train.config.schema import ZeroConfig
from llava_train.costs.dims import KNOWN_DIMS
from llava_train.costs.memory import BUCKET, num_trained, states

SEVEN = KNOWN_DIMS["Qwen/Qwen2-7B-Instruct"]
WEIGHTS = 2 * 1024 * 2048  # of states_worker.py's module
# Settings, and bytes by weight of buffers that do not grow with the model: at ZeRO 2 one of a matrix's gradient, which
# is half of the weights in bf16, and with offload one on each side; at ZeRO 3 the bucket.
SETTINGS = {
    (1, False, False): 0,
    (2, False, False): 1,
    (2, True, False): 3,
    (3, False, False): 2 * BUCKET / WEIGHTS,
    (3, True, False): 2 * BUCKET / WEIGHTS,
    (3, False, True): 2 * BUCKET / WEIGHTS,
    (3, True, True): 2 * BUCKET / WEIGHTS,
}


def test_states_are_what_deepspeed_holds(torchrun):
    stage = load(["+recipe=ov_stage"]).stages["onevision"]
    words = [",".join(str(int(word)) for word in setting) for setting in SETTINGS]
    lines = torchrun(2, "states_worker.py", *words).splitlines()
    found = dict(json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT "))
    for key, (setting, buffers) in zip(words, SETTINGS.items(), strict=True):
        held = states(SEVEN, stage, ZeroConfig(*setting), 2)
        largest = 2 * SEVEN.head if setting[:2] == (2, True) else 0  # on the host, likewise a buffer
        ours = (held.gpu - held.gathered + held.host - largest) / num_trained(SEVEN, stage)
        assert ours + buffers == pytest.approx(found[key], abs=0.02), key
