"""Learning-rate factor of a step, a pure function of the step so that nothing has to be saved for a resume."""

from __future__ import annotations

import math

from llava_train.config.schema import ScheduleConfig


def learning_rate_factor(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """Factor for optimiser step `step` (from 0) of `num_steps`.

    Warm-up lasts ceil(warmup_ratio * num_steps) steps and rises from 0, the decay ends at 0 after the last step, as in
    the schedules that the published runs used (transformers' `get_cosine_schedule_with_warmup`). It always leaves a
    step: a stage of one step has no warm-up, whose rate of 0 would teach nothing.
    Worked case, cosine, 8 steps, 2 of warm-up: 0, 0.5, 1, 0.93, 0.75, 0.5, 0.25, 0.07.
    """
    warmup = min(math.ceil(schedule.warmup_ratio * num_steps), num_steps - 1)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    match schedule.kind:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0
