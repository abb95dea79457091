"""The label of one pair, by hand."""

import math

import pytest

from sail.core.errors import UserError
from sail.core.records import LabelMode
from sail.labeling.labels import Label, Opinion, by_scores, label, sigmoid

A_BETTER = by_scores(3.0, 1.0, temperature=2.0)  # sigmoid(1)
P_A = 0.7310585786300049
TIE = by_scores(1.0, 1.0, temperature=2.0)
WINNER_ONLY = Opinion("B", None, None, None)


def test_scores_give_the_bradley_terry_probability() -> None:
    assert A_BETTER.p_a == P_A
    assert (A_BETTER.winner, A_BETTER.margin) == ("A", 2.0)
    assert (TIE.winner, TIE.p_a) == ("tie", 0.5)


@pytest.mark.parametrize(
    ("opinion", "mode", "draw", "expected"),
    [
        (A_BETTER, "hard", 0.99, Label("A", 1.0)),
        (TIE, "hard", 0.1, Label("tie", 0.5)),
        (WINNER_ONLY, "hard", 0.1, Label("B", 0.0)),
        (A_BETTER, "sampled", 0.73, Label("A", 1.0)),
        (A_BETTER, "sampled", 0.74, Label("B", 0.0)),
        (TIE, "sampled", 0.5, Label("B", 0.0)),
        (A_BETTER, "soft", 0.99, Label("A", P_A)),
        (TIE, "soft", 0.1, Label("tie", 0.5)),
    ],
)
def test_labels_by_others(opinion: Opinion, mode: LabelMode, draw: float, expected: Label) -> None:
    assert label(opinion, mode, "others", draw) == expected


@pytest.mark.parametrize(
    ("opinion", "mode", "draw", "expected"),
    [
        (A_BETTER, "soft", 0.74, Label("B", P_A)),
        (A_BETTER, "sampled", 0.73, Label("A", P_A)),
        (A_BETTER, "hard", 0.74, Label("A", P_A)),
        (TIE, "hard", 0.49, Label("A", 0.5)),
        (TIE, "hard", 0.5, Label("B", 0.5)),
    ],
)
def test_fresh_labels_record_q_and_a_verdict_without_ties(
    opinion: Opinion, mode: LabelMode, draw: float, expected: Label
) -> None:
    assert label(opinion, mode, "fresh", draw) == expected


@pytest.mark.parametrize("mode", ["soft", "sampled"])
def test_a_winner_without_a_probability_gives_no_soft_label(mode: LabelMode) -> None:
    with pytest.raises(UserError, match=r"routes\.offline: label mode .* Use label_mode: hard"):
        label(WINNER_ONLY, mode, "others", 0.5, where="routes.offline")


def test_sigmoid_survives_both_ends() -> None:
    assert sigmoid(1e4) == 1.0
    assert sigmoid(-1e4) == 0.0
    assert sigmoid(-700.0) == pytest.approx(math.exp(-700.0), rel=1e-12)
