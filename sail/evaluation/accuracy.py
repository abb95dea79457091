"""Does the policy's implicit reward order responses as people, or a scorer, do?

The implicit reward of a response is beta h, h = log pi(y|x) - log ref(y|x) (Rafailov et al. 2305.18290, eq. 5; the
prompt's constant cancels in pairs).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sail.core.records import DatasetVerdict, ScoredGroup


class Order(NamedTuple):
    """Two responses of one prompt, ids, the better one first."""

    better: str
    worse: str


def implicit_rewards(
    policy_logps: Mapping[str, float], reference_logps: Mapping[str, float], beta: float
) -> dict[str, float]:
    """response_id -> beta (log pi - log ref), beta times nats; exactly 0 where both agree."""
    return {response_id: beta * (logp - reference_logps[response_id]) for response_id, logp in policy_logps.items()}


def dataset_orders(verdicts: Sequence[DatasetVerdict]) -> list[Order]:
    """The pairs of a preference dataset, ties left out."""
    return [Order(verdict.chosen_id, verdict.rejected_id) for verdict in verdicts if not verdict.is_tie]


def scored_orders(scored: Sequence[ScoredGroup]) -> list[Order]:
    """All pairs of responses to one prompt whose scores differ."""
    orders = []
    for row in scored:
        for (id_a, a), (id_b, b) in combinations(zip(row.response_ids, row.scores, strict=True), 2):
            if a != b:
                orders.append(Order(id_a, id_b) if a > b else Order(id_b, id_a))
    return orders


def order_accuracy(rewards: Mapping[str, float], orders: Sequence[Order]) -> float | None:
    """mean over pairs of 1[r(better) > r(worse)] + 1/2 1[equal], in [0, 1]; None without pairs."""
    return float(np.mean(0.5 * (1.0 + np.sign(_margins(rewards, orders))))) if orders else None


def mean_margin(rewards: Mapping[str, float], orders: Sequence[Order]) -> float | None:
    """mean over pairs of r(better) - r(worse), in the unit of r; None without pairs."""
    return float(np.mean(_margins(rewards, orders))) if orders else None


def _margins(rewards: Mapping[str, float], orders: Sequence[Order]) -> np.ndarray:
    return np.array([rewards[order.better] - rewards[order.worse] for order in orders])
