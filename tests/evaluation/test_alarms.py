"""Signs of trouble, one at a time."""

import pytest

from sail.evaluation.alarms import alarms
from sail.evaluation.rounds import RoundRow

from .doubles import full_row


def test_a_steady_run_is_quiet() -> None:
    assert alarms([full_row(-1), full_row(0), full_row(1)]) == []
    assert alarms([]) == alarms([full_row(0)]) == []


def test_reward_under_its_best_is_over_optimisation() -> None:
    rows = [full_row(-1, eval__reward=0.1), full_row(0, eval__reward=0.9), full_row(1, eval__reward=0.7)]
    assert alarms(rows) == [
        "Reward fell from 0.900 (0) to 0.700 (1): over-optimisation, or steps that are too large. "
        "The checkpoint of 0 is better."
    ]
    within_the_error = [full_row(0, eval__reward=0.9), full_row(1, eval__reward=0.82)]  # 2 sqrt(2) .03 = .085
    assert alarms(within_the_error) == []


@pytest.mark.parametrize(
    ("metric", "before", "after", "word"),
    [
        ("rewards/accuracies_online", 0.8, 0.65, "On-policy accuracy"),
        ("completions/eos_rate", 0.99, 0.8, "end by themselves"),
        ("completions/distinct_share", 0.9, 0.4, "repeat"),
        ("completions/mean_length", 20.0, 31.0, "grew"),
    ],
)
def test_each_change_has_its_sentence(metric: str, before: float, after: float, word: str) -> None:
    base = {"completions/mean_length": 20.0}
    rows = [RoundRow(-1, "main", base | {metric: before}), RoundRow(0, "main", base | {metric: after})]
    (sentence,) = alarms(rows)
    assert word in sentence
