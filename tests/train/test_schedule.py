import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from llava_train.config.schema import ScheduleConfig
from llava_train.train.schedule import learning_rate_factor
from llava_train.train.trainer import total_steps


@pytest.mark.parametrize(("steps", "ratio", "warmup"), [(8, 0.25, 2), (100, 0.03, 3), (7, 0.0, 0), (33, 0.03, 1)])
def test_cosine_equals_that_of_the_published_runs(steps, ratio, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    for step in range(steps):
        ours = learning_rate_factor(step, steps, ScheduleConfig("cosine", ratio))
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_linear_and_constant_after_warmup():
    linear = [learning_rate_factor(s, 6, ScheduleConfig("linear", 1 / 3)) for s in range(6)]
    assert linear == [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert [learning_rate_factor(s, 4, ScheduleConfig("constant", 0.5)) for s in range(4)] == [0, 0.5, 1, 1]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_some_step_of_every_stage_learns(steps, ratio, kind):
    factors = [learning_rate_factor(step, steps, ScheduleConfig(kind, ratio)) for step in range(steps)]
    assert max(factors) == 1.0
    assert factors[-1] > 0


@pytest.mark.parametrize(
    ("per_epoch", "epochs", "cap", "expected"),
    [(10, 1, 0, 10), (10, 2.5, 0, 25), (3, 0.5, 0, 2), (10, 1, 4, 4), (10, 1, 40, 10), (10, 0, 40, 40)],
)
def test_steps_of_a_stage(per_epoch, epochs, cap, expected):
    assert total_steps(per_epoch, epochs, cap) == expected
