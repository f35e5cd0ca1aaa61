"""What ranks send each other in a step, and how long that takes, in closed form.

Enters: how many weights there are and train, the ZeRO level, packs of a step, links. Leaves: bytes and seconds. Which
collectives run on what, as `train/engine/engine.py` runs DeepSpeed 0.19: counted in tests/costs/test_collectives.py.

0   gradients are summed by all ranks once a step
1   likewise; then each rank's part of the new weights is gathered
2   as 1, but gradients are summed after each pack
3   weights are gathered for each pack's forward, and again for its backward those beyond what stays gathered;
    each pack's gradients are summed to the rank that keeps them
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_train.config.gpus import Gpu
from llava_train.config.schema import StageConfig
from llava_train.costs.dims import ModelDims
from llava_train.costs.memory import LIVE, num_parameters, num_trained

NODE = 8  # GPUs of a node, each with a network card of its own
REACHED = 0.8  # of a link's bandwidth, by large messages; a guess


@dataclass(frozen=True)
class WeightCounts:
    """Numbers of weights. backward: of those whose layers run backward, trained or not."""

    total: int
    backward: int
    trained: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of the whole tensors that ranks gather, sum to one of them each, and sum to all of them, in a step."""

    all_gather: float
    reduce_scatter: float
    all_reduce: float

    @property
    def passes(self) -> float:
        """Bytes that go round all ranks once; a sum for all of them goes round twice (Patarasuk and Yuan 2009)."""
        return self.all_gather + self.reduce_scatter + 2 * self.all_reduce

    def sent(self, world_size: int) -> float:
        """Bytes that each rank sends."""
        return self.passes * (world_size - 1) / world_size

    def seconds(self, world_size: int, gpu: Gpu, network: float) -> float:
        """Of a step, if nothing else goes on. network: bytes a second that a GPU sends to other nodes."""
        num_nodes = -(-world_size // NODE)
        within = self.sent(world_size) / gpu.link
        between = self.passes * (num_nodes - 1) / num_nodes / (NODE * network)
        return max(within, between) / REACHED


def traffic(weights: WeightCounts, level: int, element: int, num_packs: float, live: int = LIVE) -> Traffic:
    """Of a step of `num_packs` packs on each rank. element: bytes of a weight or gradient on its way.

    Worked case: 3 weights of which 2 train, in bf16, 5 packs, at ZeRO 3 with all staying gathered from forward to
    backward: 3 * 2 * 5 bytes are gathered and 2 * 2 * 5 summed.
    """
    trained = weights.trained * element
    if level == 0:
        return Traffic(0, 0, trained)
    if level == 1:
        return Traffic(trained, 0, trained)
    if level == 2:
        return Traffic(trained, 0, trained * num_packs)
    again = max(0, weights.backward - live)
    return Traffic((weights.total + again) * element * num_packs, trained * num_packs, 0)


def stage_traffic(dims: ModelDims, stage: StageConfig, num_packs: float) -> Traffic:
    """Of a step of the stage; ZeRO 0 in bf16 runs as 1."""
    parts, bf16 = num_parameters(dims), stage.precision == "bf16"
    trains = [part for part, rate in vars(stage.learning_rate).items() if rate != "frozen"]
    runs = parts if "vision_tower" in trains else {name: n for name, n in parts.items() if name != "vision_tower"}
    level = max(1, stage.zero.level) if bf16 else stage.zero.level
    weights = WeightCounts(sum(parts.values()), sum(runs.values()), num_trained(dims, stage))
    return traffic(weights, level, 2 if bf16 else 4, num_packs)
