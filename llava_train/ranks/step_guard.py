"""Before each step the ranks tell each other what comes next. One that differs, or does not come, is named."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import LostRankError, RunError

LONGER = 10  # times the longest stretch between two meetings so far that a rank is waited for, if `max_wait` is less
_CONTINUES = "the same command continues from the last whole checkpoint"


class Guard:
    """The ranks' meeting before a step. Every rank calls `meet` at the same places of the run."""

    def __init__(self, ranks: Ranks, max_wait: float):
        """max_wait: seconds that a rank is waited for at the least."""
        self._ranks, self._max_wait = ranks, max_wait
        self._longest, self._last = 0.0, time.monotonic()

    def meet(self, step: int, plan: dict[str, int], counts: Sequence[float]) -> list[list[float]]:
        """`counts` of every rank, in rank order. step: how many were done before. plan: what must be alike on all.

        Raises RunError where a rank has another step or plan, LostRankError where one does not come.
        """
        began = time.monotonic()
        self._longest, self._last = max(self._longest, began - self._last), began
        limit = max(self._max_wait, LONGER * self._longest)
        self._ranks.tell(step + 1)
        try:
            told = self._ranks.exchange([step, *plan.values(), *counts], limit)
        except RuntimeError as error:
            if time.monotonic() - began < limit and "Timed out" not in str(error):
                raise  # a rank is gone, which shows at once
            raise LostRankError(self._absent(step + 1, limit)) from error
        width = 1 + len(plan)
        _refuse_differences([dict(zip(["step", *plan], map(int, row[:width]), strict=True)) for row in told])
        self._last = time.monotonic()
        return [row[width:] for row in told]

    def _absent(self, step: int, limit: float) -> str:
        late = {rank: last for rank, last in enumerate(self._ranks.told()) if last < step}
        lines = [f"step {step}: {len(late)} of {self._ranks.world_size} ranks did not come within {limit:.0f} s"]
        lines += [f"  rank {rank}: came to step {last} and not since" for rank, last in late.items()]
        remedy = "see what it waits for (its data, its disk, its node); train.max_wait=SECONDS gives it longer"
        return "\n".join([*lines, f"    -> {remedy}; {_CONTINUES}"])


def _refuse_differences(plans: list[dict[str, int]]) -> None:
    """Raises RunError, the same on every rank, if not all ranks plan the same."""
    ranks_of: dict[str, list[int]] = {}
    for rank, plan in enumerate(plans):
        told = ", ".join([f"step {plan['step'] + 1}", *(f"{k} {v}" for k, v in plan.items() if k != "step")])
        ranks_of.setdefault(told, []).append(rank)
    if len(ranks_of) > 1:
        lines = ["the ranks disagree on what comes next"]
        lines += [f"  rank {', '.join(map(str, ranks))}: {told}" for told, ranks in ranks_of.items()]
        remedy = "all ranks must run the same code with the same settings on the same data files"
        raise RunError("\n".join([*lines, f"    -> {remedy}; {_CONTINUES}"]))
