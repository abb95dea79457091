"""Which rows an optimizer step sees: a pure function of the step, so a resumed run needs no iterator state.

The run's rows form one long line of slots, batch_size to a step. Every slot belongs to a route, by a rule that looks
at shares alone; a route fills its slots by walking through its own seeded permutations.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np

from sail.core.errors import UserError
from sail.core.seeds import permutation

Shares = Mapping[str, Fraction]


def exact_shares(shares: Mapping[str, float | Literal["rest"]]) -> dict[str, Fraction]:
    """The routes' shares, in steps of 1/10000, as fractions that sum to 1; 'rest' routes divide what others leave."""
    fixed = {name: Fraction(round(10_000 * share), 10_000) for name, share in shares.items() if share != "rest"}
    rest = [name for name, share in shares.items() if share == "rest"]
    left = 1 - sum(fixed.values(), Fraction(0))
    if left < 0 or (left > 0 and not rest):
        total = f"shares sum to {float(1 - left):g}"
        raise UserError(total, where="routes", cure="Let them sum to 1, or give one route share: rest")
    return {name: fixed.get(name, left / max(1, len(rest))) for name in shares}


def rows_before(step: int, shares: Shares, batch_size: int) -> dict[str, int]:
    """Rows each route has had in all steps before `step`: less than one row off step * batch_size * share."""
    prefix = _slot_counts(tuple(shares.values()))
    periods, slots = divmod(step * batch_size, len(prefix) - 1)
    counts = periods * prefix[-1] + prefix[slots]
    return dict(zip(shares, counts.tolist(), strict=True))


def batch_counts(step: int, shares: Shares, batch_size: int) -> dict[str, int]:
    """Rows of each route in one step; they sum to batch_size."""
    before, after = rows_before(step, shares, batch_size), rows_before(step + 1, shares, batch_size)
    return {name: after[name] - before[name] for name in shares}


def batch_indices(
    step: int,
    shares: Shares,
    sizes: Mapping[str, int],
    batch_size: int,
    seed: int,
    round_index: int,
    since: Mapping[str, int] | None = None,
) -> dict[str, list[int]]:
    """Positions of each route's rows in one step.

    since: the step at which a refreshed route drew the rows it has now, from which its positions count; default 0.
    """
    before, counts = rows_before(step, shares, batch_size), batch_counts(step, shares, batch_size)
    for name, first in (since or {}).items():
        before[name] -= rows_before(first, shares, batch_size)[name]
    return {
        name: [_row_at(before[name] + k, sizes[name], name, seed, round_index) for k in range(counts[name])]
        for name in shares
    }


def steps_for_epochs(epochs: float, sizes: Mapping[str, int], shares: Shares, batch_size: int) -> int:
    """Steps after which the slowest route has been passed `epochs` times."""
    needed = [Fraction(sizes[name]) / (share * batch_size) for name, share in shares.items() if share > 0]
    return max(1, math.ceil(max(needed) * Fraction(str(epochs))))


@lru_cache(maxsize=8)
def _slot_counts(shares: tuple[Fraction, ...]) -> np.ndarray:
    """[P + 1, routes] int64: slots of each route among the first p, for one period P of the shares.

    Tijdeman 1980 (the chairman assignment problem): a route may take a slot once its due x reaches 1/(2n - 2), and
    of those that may the most urgent does; no count is ever a whole row off its share. After P slots, the common
    denominator of the shares, all counts are exact and the pattern repeats.
    """
    period, routes = math.lcm(*(share.denominator for share in shares)), len(shares)
    slack = Fraction(1, 2 * routes - 2) if routes > 1 else Fraction(1)
    counts = np.zeros((period + 1, routes), dtype=np.int64)
    taken = [0] * routes
    for slot in range(1, period + 1):
        due = [share * slot - count for share, count in zip(shares, taken, strict=True)]
        ready = [index for index in range(routes) if shares[index] > 0 and due[index] >= slack]
        chosen = min(ready, key=lambda index: ((1 - slack - due[index]) / shares[index], index))
        taken[chosen] += 1
        counts[slot] = taken
    return counts


def _row_at(position: int, size: int, name: str, seed: int, round_index: int) -> int:
    epoch, offset = divmod(position, size)
    return int(_order(size, name, seed, round_index, epoch)[offset])


@lru_cache(maxsize=16)
def _order(size: int, name: str, seed: int, round_index: int, epoch: int) -> np.ndarray:
    return permutation(size, seed, "order", name, round_index, epoch)
