"""Which rows an optimizer step sees: a pure function of the step, so a resumed run needs no iterator state."""

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
    """The routes' shares as fractions that sum to 1; 'rest' routes divide what the others leave."""
    fixed = {name: Fraction(str(share)) for name, share in shares.items() if share != "rest"}
    rest = [name for name, share in shares.items() if share == "rest"]
    left = 1 - sum(fixed.values(), Fraction(0))
    if left < 0 or (left > 0 and not rest):
        raise UserError(
            f"shares sum to {float(1 - left):g}",
            where="routes",
            cure="Let them sum to 1, or give one route share: rest",
        )
    return {name: fixed.get(name, left / max(1, len(rest))) for name in shares}


def rows_before(step: int, share: Fraction, batch_size: int) -> int:
    """Rows of a route in all steps before `step`: carried rounding, never more than one row off the exact share."""
    return math.floor(step * batch_size * share + Fraction(1, 2))


def batch_counts(step: int, shares: Shares, batch_size: int) -> dict[str, int]:
    """Rows of each route in one step; they always sum to batch_size.

    Cumulative shares are rounded, so that the routes' borders move together: route k gets the rows between the
    rounded ends of its predecessors' and its own cumulative share.
    """
    counts, cumulative, below = {}, Fraction(0), 0
    for name, share in shares.items():
        cumulative += share
        upto = rows_before(step + 1, cumulative, batch_size) - rows_before(step, cumulative, batch_size)
        counts[name] = upto - below
        below = upto
    return counts


def batch_indices(
    step: int, shares: Shares, sizes: Mapping[str, int], batch_size: int, seed: int, round_index: int
) -> dict[str, list[int]]:
    """Positions of each route's rows in one step. A route walks through its own seeded permutations."""
    counts = batch_counts(step, shares, batch_size)
    indices = {}
    for name, count in counts.items():
        first = sum_before(step, name, shares, batch_size)
        indices[name] = [
            _row_at(position, sizes[name], name, seed, round_index) for position in range(first, first + count)
        ]
    return indices


def sum_before(step: int, name: str, shares: Shares, batch_size: int) -> int:
    """Rows route `name` has had in all steps before `step`."""
    names = list(shares)
    upto = sum((shares[other] for other in names[: names.index(name) + 1]), Fraction(0))
    return rows_before(step, upto, batch_size) - rows_before(step, upto - shares[name], batch_size)


def steps_for_epochs(epochs: float, sizes: Mapping[str, int], shares: Shares, batch_size: int) -> int:
    """Steps after which the slowest route has been passed `epochs` times."""
    needed = [Fraction(sizes[name]) / (share * batch_size) for name, share in shares.items() if share > 0]
    return max(1, math.ceil(max(needed) * Fraction(str(epochs))))


def _row_at(position: int, size: int, name: str, seed: int, round_index: int) -> int:
    epoch, offset = divmod(position, size)
    return int(_order(size, name, seed, round_index, epoch)[offset])


@lru_cache(maxsize=16)
def _order(size: int, name: str, seed: int, round_index: int, epoch: int) -> np.ndarray:
    return permutation(size, seed, "order", name, round_index, epoch)
