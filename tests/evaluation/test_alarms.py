"""Signs of trouble, one at a time."""

import pytest

from sail.evaluation.alarms import alarms, over_optimisation
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


def scored_row(round_index: int, **rewards: float) -> RoundRow:
    metrics = {"completions/mean_length": 20.0}
    for name, reward in rewards.items():
        metrics |= {f"eval/reward/{name}": reward, f"eval/reward_se/{name}": 0.1}
    return RoundRow(round_index, "main", metrics)


def test_scorers_that_part_are_over_optimisation_whichever_is_the_headline() -> None:
    rows = [scored_row(-1, proxy=0.0, gold=0.0), scored_row(0, proxy=1.0, gold=1.0), scored_row(1, proxy=2.0, gold=0.5)]
    assert over_optimisation(rows) == alarms(rows) == [
        "Since 0 the reward by proxy rose and that by gold fell: over-optimisation. "
        "The checkpoint of 0 is better by gold."
    ]  # fmt: skip


@pytest.mark.parametrize(
    "last",
    [
        {"proxy": 2.0, "gold": 0.8},  # gold within 2 sqrt(2) .1 = .28 of its best
        {"proxy": 1.2, "gold": 0.5},  # the proxy no higher than when gold was best
        {"proxy": 2.0, "gold": 1.5},
        {"gold": 0.5},
    ],
)
def test_scorers_that_move_together_or_by_chance_are_quiet(last: dict[str, float]) -> None:
    rows = [scored_row(-1, proxy=0.0, gold=0.0), scored_row(0, proxy=1.0, gold=1.0), scored_row(1, **last)]
    assert over_optimisation(rows) == []


def test_shapes_alone_stop_no_run() -> None:
    rows = [
        RoundRow(-1, "main", {"completions/mean_length": 20.0}),
        RoundRow(0, "main", {"completions/mean_length": 90.0}),
    ]
    assert alarms(rows) and over_optimisation(rows) == []
