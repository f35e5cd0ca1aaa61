"""The two families of errors that a user can cause; both print without a traceback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the configuration: where, what, and what to do about it."""

    key: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}\n    -> {self.remedy}"


def cut_short(text: str, most: int) -> str:
    """A text as messages repeat it, the first `most` characters of a long one."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def shortened(names: Iterable[str], limit: int = 30) -> str:
    """The names, separated by commas; of many the first, and how many more."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def counted(reasons: Iterable[str]) -> str:
    """How often each occurs, the most frequent first. Worked case: a b a -> `2 a, 1 b`."""
    return ", ".join(f"{number} {reason}" for reason, number in Counter(reasons).most_common())


class ConfigError(ValueError):
    """All faults of one configuration, raised together."""

    def __init__(self, faults: list[Fault]):
        assert faults
        self.faults = faults
        head = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
        super().__init__(
            "\n".join([f"{head} in the configuration:", *(f"  {i}. {f}" for i, f in enumerate(faults, 1))])
        )

    @classmethod
    def one(cls, key: str, problem: str, remedy: str) -> ConfigError:
        """Of a single fault."""
        return cls([Fault(key, problem, remedy)])


class DataError(ValueError):
    """A sample that cannot be used. `reason` is the short countable kind, `detail` the particulars."""

    def __init__(self, source: str, record: str, reason: str, detail: str = ""):
        self.source, self.record, self.reason, self.detail = source, record, reason, detail
        super().__init__(f"{source}, record {record}: {reason}" + (f" ({detail})" if detail else ""))

    def __reduce__(self):  # crosses process borders whole
        return type(self), (self.source, self.record, self.reason, self.detail)


class RunError(RuntimeError):
    """A run that cannot go on or be continued, for a reason its user can act on."""


class LostRankError(RunError):
    """Another rank is gone or does not come: the same command may well go on from the last whole checkpoint."""
