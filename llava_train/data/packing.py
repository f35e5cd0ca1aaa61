"""The plan of an optimiser step: which samples share a micro-batch, on which rank.

Enters: token and tile counts of the step's samples, the number of ranks, the budget of a micro-batch. Leaves: for each
rank its packs, lists of positions into the step's samples. The plan changes speed and memory, never the gradient.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

QUADRATIC_AT = 8192  # tokens at which a sample's attention costs about as much as the rest of its work
TILE_COST = 400.0  # one tile through the tower, in tokens through the language model: 729 patches, smaller layers


def plan_step(
    lengths: Sequence[int], tiles: Sequence[int], world_size: int, max_tokens: int, max_tiles: int
) -> list[list[list[int]]]:
    """Packs per rank, every rank with the same number of them; [] is a filler, run for symmetry alone.

    Samples go, largest share of the budget first, into the pack with the least room that still holds them; one beyond
    the budget gets a pack of its own. Where that makes fewer packs than the ranks will run anyway, the samples are
    spread over all of these. Packs go, dearest first, to the rank with the least work that has a place left.
    Worked case: lengths [5 4 3 2], no tiles, 2 ranks, 7 tokens -> packs {5 2} {4 3} -> [[[0, 3]], [[1, 2]]].
    """
    cost = [_cost(length, num_tiles) for length, num_tiles in zip(lengths, tiles, strict=True)]
    packs = _pack(lengths, tiles, max_tokens, max_tiles)
    places = -(-len(packs) // world_size)
    if len(packs) < places * world_size:
        packs = _spread(lengths, tiles, cost, places * world_size, max_tokens, max_tiles) or packs
    costs = [sum(cost[i] for i in pack) for pack in packs]
    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    queue = [(0.0, rank) for rank in range(world_size)]
    for position in sorted(range(len(packs)), key=lambda position: (-costs[position], position)):
        work, rank = heapq.heappop(queue)
        ranks[rank].append(packs[position])
        if len(ranks[rank]) < places:
            heapq.heappush(queue, (work + costs[position], rank))
    return [packs + [[] for _ in range(places - len(packs))] for packs in ranks]


def _pack(lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int) -> list[list[int]]:
    def share(i: int) -> float:
        return max(lengths[i] / max_tokens, tiles[i] / max_tiles)

    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens and tiles left, beside `packs`
    for i in sorted(range(len(lengths)), key=lambda i: (-share(i), i)):
        holders = [p for p, (tokens, slots) in enumerate(room) if lengths[i] <= tokens and tiles[i] <= slots]
        if holders:
            best = min(holders, key=lambda p: min(room[p][0] / max_tokens, room[p][1] / max_tiles))
        else:
            best = len(packs)
            packs.append([])
            room.append((max_tokens, max_tiles))
        packs[best].append(i)
        room[best] = (room[best][0] - lengths[i], room[best][1] - tiles[i])
    return [sorted(pack) for pack in packs]


def _spread(
    lengths: Sequence[int], tiles: Sequence[int], cost: list[float], num_packs: int, max_tokens: int, max_tiles: int
) -> list[list[int]] | None:
    """Samples, dearest first, each into the cheapest of `num_packs` packs with room; None if one has none."""
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    load = [(0.0, 0, 0)] * num_packs  # cost, tokens, tiles
    for i in sorted(range(len(lengths)), key=lambda i: (-cost[i], i)):
        for p in sorted(range(num_packs), key=load.__getitem__):
            work, tokens, slots = load[p][0] + cost[i], load[p][1] + lengths[i], load[p][2] + tiles[i]
            if not packs[p] or (tokens <= max_tokens and slots <= max_tiles):
                packs[p].append(i)
                load[p] = (work, tokens, slots)
                break
        else:
            return None
    return [sorted(pack) for pack in packs if pack]


def _cost(length: int, num_tiles: int) -> float:
    return length + length**2 / QUADRATIC_AT + TILE_COST * num_tiles
