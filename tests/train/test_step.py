"""What stops a step, and that it says whose fault it is."""

import pytest
import torch

from llava_train.batch.packed import IGNORE_INDEX, PackedBatch
from llava_train.data.loading.steps import StepBatches
from llava_train.ranks.process_group import Ranks
from llava_train.ranks.step_guard import Guard
from llava_train.shared.errors import DataError, RunError
from llava_train.train.checkpoint.state import StepCounts
from llava_train.train.step import count as count_step
from llava_train.train.step import train_step

ALONE = Ranks(0, 1, torch.device("cpu"))


def count(batches: list[PackedBatch], skipped=(), wants_stop=False) -> StepCounts:
    return count_step(StepBatches(0, 0, 0, batches, list(skipped)), Guard(ALONE, 1.0), wants_stop)


def make_batch(labels: list[int], names: tuple[str, ...]) -> PackedBatch:
    ids = torch.arange(len(labels))
    empty = torch.zeros(0, dtype=torch.long)
    bounds = torch.tensor([0, len(labels)], dtype=torch.int32)
    pixels = torch.zeros(0, 3, 2, 2, dtype=torch.uint8)
    learned = torch.tensor(labels)
    places = (learned != IGNORE_INDEX).nonzero().squeeze(1)
    return PackedBatch(ids, learned, places, ids, bounds, len(labels), pixels, empty, (), names)


class FixedLosses:
    """Stands in for the engine: one given loss sum per micro-batch, and a gradient norm."""

    def __init__(self, *losses: float, norm: float = 1.5):
        self.losses, self.norm, self.stepped = iter(losses), norm, False

    def forward_backward(self, batch, num_supervised, is_last):
        return torch.tensor(next(self.losses))

    def step(self):
        self.stepped = True
        return self.norm


def test_counts_leave_fillers_out():
    batches = [make_batch([IGNORE_INDEX, 5, 6], ("a/1",)), make_batch([IGNORE_INDEX], ())]
    assert count(batches, [DataError("a", "2", "broken")]) == StepCounts(
        num_samples=1, num_tokens=3, num_supervised=2, num_visuals=0, num_skipped=1, wants_stop=False
    )
    assert count(batches, wants_stop=True).wants_stop


def test_loss_is_the_mean_over_the_steps_supervised_tokens():
    batches = [make_batch([IGNORE_INDEX, 5, 6], ("a/1",)), make_batch([IGNORE_INDEX, 7], ("a/2",))]
    result = train_step(FixedLosses(2.0, 4.0), batches, count(batches), ALONE)
    assert result.loss == 2.0
    assert result.grad_norm == 1.5


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_samples_of_its_pack_before_the_update(loss):
    batches = [make_batch([IGNORE_INDEX, 5], ("a/1", "a/2")), make_batch([IGNORE_INDEX, 7], ("b/3", "b/4"))]
    engine = FixedLosses(2.0, loss)
    with pytest.raises(RunError, match=r"loss is not finite in the pack of: b/3, b/4\n    -> nothing was updated"):
        train_step(engine, batches, count(batches), ALONE)
    assert not engine.stepped


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_the_samples_of_its_step(norm):
    batches = [make_batch([IGNORE_INDEX, 5], ("a/1", "a/2")), make_batch([IGNORE_INDEX, 7], ("b/3",))]
    with pytest.raises(RunError, match=r"gradient is not, in the step of: a/1, a/2, b/3\n    -> nothing was updated"):
        train_step(FixedLosses(2.0, 3.0, norm=norm), batches, count(batches), ALONE)


def test_a_step_that_supervises_nothing_is_an_error():
    engine = FixedLosses(0.0)
    batches = [make_batch([IGNORE_INDEX], ("a/1",))]
    with pytest.raises(RunError, match="supervises no token"):
        train_step(engine, batches, count(batches), ALONE)
    assert not engine.stepped
