"""Length, endings, variety."""

import pytest

from sail.evaluation.completions import completion_metrics, length_correlation, nats_per_token

from .doubles import group, scores

GROUPS = [
    group("a", [(3, 4, 2), (3, 4, 2)]),
    group("b", [(3, 4, 2), (5, 5, 5, 5)], ["stop_string", "length"]),
]


def test_completion_metrics_by_hand() -> None:
    assert completion_metrics(GROUPS) == {
        "completions/mean_length": pytest.approx((3 + 3 + 3 + 4) / 4),
        "completions/eos_rate": 0.75,
        "completions/distinct_share": 0.5,  # two sequences, four responses
        "completions/distinct_share_per_prompt": pytest.approx((0.5 + 1.0) / 2),
    }


def test_nats_per_token_weighs_tokens_not_responses() -> None:
    logps = {"p-a-0": -3.0, "p-a-1": -3.0, "p-b-0": -3.0, "p-b-1": -17.0}
    assert nats_per_token(GROUPS, logps) == pytest.approx(26 / 13)
    assert nats_per_token([group("a", [()])], {"p-a-0": 0.0}) is None


def test_length_correlation_by_hand() -> None:
    # lengths 3, 3, 3, 4; scores 0, 1, 2, 3: covariance 4.5 / 4 - 0 ... = sum (dl ds) / sqrt(sum dl^2 sum ds^2)
    lengths, values = [-0.25, -0.25, -0.25, 0.75], [-1.5, -0.5, 0.5, 1.5]
    expected = sum(x * y for x, y in zip(lengths, values, strict=True)) / (0.75 * 5.0) ** 0.5
    assert length_correlation(GROUPS, [scores("a", 0.0, 1.0), scores("b", 2.0, 3.0)]) == pytest.approx(expected)


def test_a_constant_score_has_no_correlation() -> None:
    assert length_correlation(GROUPS, [scores("a", 1.0, 1.0), scores("b", 1.0, 1.0)]) is None
