"""The plan of an epoch by tokens: every draw in one of many packs that are full and of like cost.

Enters: tokens, tiles and cost of an epoch's draws, their order, the budget of a pack. Leaves: an `EpochPlan`, kept in a
file. It knows nothing of ranks: a step is so many of its packs, whoever runs them.

Packs are formed in blocks, from the samples drawn next. What a block has no room for is carried into the next one.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava_train.data.packing.packs import Budget, PackSizes, whole
from llava_train.shared.whole_files import whole_file

FORMAT = 1  # of the file and of the way that packs are formed; a change of either makes old plans unread
TARGET = 0.99  # of the budget of its packs that the samples of a block ask for, so that nearly all find room
OVERFLOW = 1.05  # of the budget that a pack may hold until samples are exchanged
SPARE = 2  # places of the fullest pack that may be filled by exchange
ROUNDS, TRIED = 60, 6  # of exchange; places of a pack that are tried in a round
HARD = 100.0  # how much worse a pack beyond its budget is than one as far from the mean
DEAR = 0.05  # packs dearer than the mean by this or a multiple of it are put beside each other


@dataclass(frozen=True)
class EpochPlan:
    """Packs of positions: pack p is positions[starts[p]:starts[p + 1]]."""

    positions: np.ndarray  # int32 [draws]
    starts: np.ndarray  # int64 [packs + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.positions[self.starts[pack] : self.starts[pack + 1]]


def load_plan(
    sizes: PackSizes, budget: Budget, window: int, key: tuple[int, ...], least: int, folder: Path
) -> EpochPlan:
    """The plan of an epoch, from `folder` or made there, whole or absent. key: seed, stage, epoch.

    least: packs that it has at the least. Processes that ask at the same time make the same plan.
    """
    content = hashlib.sha256(repr((FORMAT, budget, window, key, least)).encode())
    for array in (sizes.lengths, sizes.tiles, sizes.costs):
        content.update(np.ascontiguousarray(array).data)
    path = folder / f"plan-{content.hexdigest()[:16]}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path, "wb", several=True) as file:
            np.savez(file, **vars(plan_epoch(sizes, budget, window, key, least)))
    with np.load(path) as arrays:
        return EpochPlan(**arrays)


def plan_epoch(sizes: PackSizes, budget: Budget, window: int, key: tuple[int, ...], least: int = 1) -> EpochPlan:
    """A pure function of its arguments. window: packs of a block.

    Worked case: lengths and costs [4 3 2 9], budget 6 -> packs {9} {4} {3 2}, in an order drawn by the key.
    """
    order = np.random.default_rng(key).permutation(len(sizes))
    loads = _Loads.of(sizes, budget)
    asked = np.cumsum(loads.shares[order], axis=0)  # packs that the draws so far ask for, by tokens and by tiles
    packs: list[np.ndarray] = []
    left, begin = order[:0], 0
    while begin < len(order) or len(left):
        room = window * TARGET - loads.shares[left].sum(0) + (asked[begin - 1] if begin else 0)
        end = min(int(np.searchsorted(asked[:, i], room[i], side="right")) for i in (0, 1))
        end = max(end, begin if len(left) else begin + 1)
        waiting = np.concatenate([left, order[begin:end]])
        num_packs = min(window, int(np.ceil(loads.shares[waiting].sum(0).max() / TARGET)))
        formed, left = _form(loads, waiting, num_packs, np.random.default_rng((*key, len(packs))))
        packs += formed
        begin = end
    while len(packs) < least:
        largest = max(range(len(packs)), key=lambda p: len(packs[p]))
        packs[largest : largest + 1] = np.array_split(packs[largest], 2)
    return EpochPlan(np.concatenate(packs).astype(np.int32), np.cumsum([0, *map(len, packs)]))


@dataclass(frozen=True)
class _Loads:
    """What samples weigh. The last of `sums` is 0, for no sample.

    shares [samples, 2]: of the budgets of tokens and of tiles, at most 1; alone [samples]: beyond one of them.
    sums [3, samples + 1]: cost, tokens and tiles as whole numbers, so that they add up alike on every machine.
    """

    budget: Budget
    shares: np.ndarray
    alone: np.ndarray
    sums: np.ndarray

    @staticmethod
    def of(sizes: PackSizes, budget: Budget) -> _Loads:
        shares = np.stack([sizes.lengths / budget.tokens, sizes.tiles / budget.tiles], axis=1)
        alone = np.any(shares > 1, axis=1)
        shares[alone] = 1
        sums = np.stack([whole(sizes.costs), sizes.lengths, sizes.tiles]).astype(np.float64)
        return _Loads(budget, shares, alone, np.append(sums, np.zeros((3, 1)), axis=1))

    def __getitem__(self, samples: np.ndarray) -> _Loads:
        sums = self.sums[:, np.append(samples, -1)]
        return _Loads(self.budget, self.shares[samples], self.alone[samples], sums)

    def over(self, sums: np.ndarray) -> np.ndarray:
        return (sums[1] > self.budget.tokens) | (sums[2] > self.budget.tiles)


def _form(
    loads: _Loads, waiting: np.ndarray, num_packs: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """`num_packs` packs of the samples that wait, or more where samples need packs of their own; and what is left."""
    loads = loads[waiting]
    alone = np.flatnonzero(loads.alone)
    members, left = _dealt(loads, np.flatnonzero(~loads.alone), max(1, num_packs - len(alone)))
    _level(loads, members, rng)
    left = _refilled(loads, members, left + _evicted(loads, members))
    packs = [pack for row in members if len(pack := row[row >= 0])] + list(alone[:, None])
    costs = np.array([loads.sums[0, pack].sum() for pack in packs])
    shuffled = rng.permutation(len(packs))
    dearness = np.floor(np.maximum(costs[shuffled] / np.median(costs) - 1, 0) / DEAR)
    mixed = shuffled[np.argsort(-dearness, kind="stable")]
    return [waiting[packs[p]] for p in mixed], waiting[np.array(left, dtype=np.int64)]


def _dealt(loads: _Loads, samples: np.ndarray, num_packs: int) -> tuple[np.ndarray, list[int]]:
    """Each sample, largest first, to the least filled pack: members [packs, places], -1 for none; and those left.

    A pack may end a little over its budget, which the exchange that follows levels out.
    """
    queue = [(0.0, p, 0.0, 0.0) for p in range(num_packs)]
    packs: list[list[int]] = [[] for _ in queue]
    left = []
    ordered = samples[np.argsort(-loads.shares[samples].max(1), kind="stable")]
    for i, (tokens, tiles) in zip(ordered.tolist(), loads.shares[ordered].tolist(), strict=True):
        _, p, filled, tiled = queue[0]
        filled, tiled = filled + tokens, tiled + tiles
        most = filled if filled > tiled else tiled
        if most > OVERFLOW:
            left.append(i)
        else:
            packs[p].append(i)
            heapq.heapreplace(queue, (most, p, filled, tiled))
    members = np.full((num_packs, max(map(len, packs)) + SPARE), -1)
    for row, pack in zip(members, packs, strict=True):
        row[: len(pack)] = pack
    return members, left


def _level(loads: _Loads, members: np.ndarray, rng: np.random.Generator) -> None:
    """Exchanges samples between packs, in place, until all have about the same cost and the same number of tokens.

    In each round packs meet in pairs, the cheapest the dearest or any two, and of a few places of both the best two
    are exchanged, if that brings the pair nearer to the mean. An empty place is no sample.
    """
    half, num_places = len(members) // 2, members.shape[1]
    sums = loads.sums[:, members].sum(2)
    means = sums.mean(1)
    limits = np.array([loads.budget.tokens, loads.budget.tiles])

    def strain(sums: np.ndarray) -> np.ndarray:
        """How far packs [3, ...] are from where they should be."""
        over = [np.maximum(sums[i + 1] / limits[i] - 1, 0) for i in (0, 1)]
        apart = [sums[i] / means[i] - 1 for i in (0, 1)]
        return apart[0] ** 2 + apart[1] ** 2 + HARD * (over[0] ** 2 + over[1] ** 2)

    for number in range(ROUNDS if half else 0):
        met = np.argsort(sums[0], kind="stable") if number % 2 else rng.permutation(len(members))
        first, second = met[:half], met[::-1][:half]
        places = rng.integers(0, num_places, (2, half, TRIED))
        ours, theirs = members[first[:, None], places[0]], members[second[:, None], places[1]]
        gain = loads.sums[:, theirs][:, :, None, :] - loads.sums[:, ours][:, :, :, None]
        after = strain(sums[:, first, None, None] + gain) + strain(sums[:, second, None, None] - gain)
        best = after.reshape(half, -1).argmin(1)
        a, b = np.divmod(best, TRIED)
        pairs = np.arange(half)
        before = strain(sums[:, first]) + strain(sums[:, second])
        pairs = pairs[after[pairs, a, b] < before]
        a, b, first, second = a[pairs], b[pairs], first[pairs], second[pairs]
        members[first, places[0, pairs, a]] = theirs[pairs, b]
        members[second, places[1, pairs, b]] = ours[pairs, a]
        sums[:, first] += gain[:, pairs, a, b]
        sums[:, second] -= gain[:, pairs, a, b]


def _evicted(loads: _Loads, members: np.ndarray) -> list[int]:
    """Takes samples out of packs beyond their budget, in place, the smallest first."""
    out: list[int] = []
    for p in np.flatnonzero(loads.over(loads.sums[:, members].sum(2))):
        row = members[p]
        places = np.flatnonzero(row >= 0)
        for place in places[np.argsort(loads.shares[row[places]].max(1), kind="stable")]:
            if loads.over(loads.sums[:, row].sum(1)):
                out.append(int(row[place]))
                row[place] = -1
    return out


def _refilled(loads: _Loads, members: np.ndarray, left: list[int]) -> list[int]:
    """Puts samples, largest first, into the fullest packs with room, in place. Returns those that fit nowhere."""
    sums = loads.sums[:, members].sum(2)
    still = []
    for i in sorted(left, key=lambda i: (-loads.shares[i].max(), i)):
        after = sums + loads.sums[:, i, None]
        fits = ~loads.over(after) & (members == -1).any(1)
        if not fits.any():
            still.append(i)
            continue
        p = int(np.where(fits, after[1], -1).argmax())
        members[p, int((members[p] == -1).argmax())] = i
        sums[:, p] = after[:, p]
    return still
