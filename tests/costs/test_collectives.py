"""What ranks send each other in a step, in closed form, against the collectives that DeepSpeed calls."""

import json

import pytest
import traffic_worker

from llava_train.config.gpus import GPUS
from llava_train.costs.collectives import REACHED, Traffic, WeightCounts, traffic

LAYER = traffic_worker.WIDTH**2
TOY = WeightCounts(
    traffic_worker.LAYERS * LAYER, (traffic_worker.LAYERS - 1) * LAYER, (traffic_worker.LAYERS - 1) * LAYER
)
ALL = 10**9
CASES = [
    *((level, "fp32", ALL) for level in (0, 1, 2, 3)),
    *((level, "bf16", ALL) for level in (1, 2, 3)),
    (3, "fp32", 1),
    (3, "bf16", 1),
]


def test_bytes_are_those_that_the_collectives_carry(torchrun):
    printed = torchrun(2, "traffic_worker.py", *(",".join(map(str, case)) for case in CASES))
    sent = [json.loads(line.removeprefix("SENT ")) for line in printed.splitlines() if line.startswith("SENT ")]
    assert len(sent) == len(CASES)
    for (level, precision, live), found in zip(CASES, sent, strict=True):
        element = {"fp32": 4, "bf16": 2}[precision]
        # one layer is let go of at a time, and the first, frozen one is not needed again
        expected = traffic(TOY, level, element, traffic_worker.MICRO_BATCHES, live - live % LAYER)
        by_name = {
            "all_gather_into_tensor": expected.all_gather,
            "reduce_scatter_tensor": expected.reduce_scatter,
            "all_reduce": expected.all_reduce,
        }
        assert found == {name: size for name, size in by_name.items() if size}, (level, precision, live)


def test_a_message_takes_the_slower_of_a_nodes_links_and_its_network():
    """By hand: 8 GB gathered. On 2 GPUs each sends 4 GB; on two nodes of 8 half of it comes in by 8 cards."""
    gathered, gpu = Traffic(8e9, 0, 0), GPUS["h100"]
    assert gathered.sent(2) == 4e9
    assert gathered.seconds(1, gpu, 50e9) == 0
    assert gathered.seconds(2, gpu, 50e9) == pytest.approx(4e9 / 450e9 / REACHED)
    assert gathered.seconds(16, gpu, 1e9) == pytest.approx(4e9 / 8e9 / REACHED)
    assert Traffic(0, 0, 8e9).seconds(2, gpu, 50e9) == pytest.approx(8e9 / 450e9 / REACHED)
