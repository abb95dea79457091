"""The simulated human."""

import math

import pytest

from sail.core.records import Example
from sail.testbed.preferences import Preference, agreement, prefer

Pair = tuple[Example, Example]


def pair(index: int) -> Pair:
    """A response worth 2 and one worth 1 by the reward below, the better one first."""
    prompt = ({"role": "user", "content": f"film number {index}"},)
    return Example(prompt, "good good", True), Example(prompt, "good", True)


def count_good(examples: list[Example]) -> list[float]:
    return [float(len(example.response.split())) for example in examples]


def share_of_better(tau: float, num_pairs: int = 4000) -> float:
    pairs = [pair(index) for index in range(num_pairs)]
    return sum(label.chosen.response == "good good" for label in prefer(pairs, count_good, tau, 7)) / num_pairs


def test_the_human_chooses_the_better_response_with_the_chance_of_bradley_and_terry():
    standard_error = 0.5 / math.sqrt(4000)
    assert share_of_better(tau=1.0) == pytest.approx(1 / (1 + math.exp(-1)), abs=4 * standard_error)  # .731
    assert share_of_better(tau=0.5) == pytest.approx(1 / (1 + math.exp(-2)), abs=4 * standard_error)  # .881


def test_a_human_without_noise_never_errs_and_huge_gaps_do_not_overflow():
    assert share_of_better(tau=1e-6, num_pairs=50) == 1.0


def test_a_label_depends_on_its_prompt_and_not_on_its_place():
    pairs = [pair(index) for index in range(50)]
    forwards = prefer(pairs, count_good, 1.0, 7)
    backwards = prefer(pairs[::-1], count_good, 1.0, 7)
    assert forwards == backwards[::-1]


def test_agreement_leaves_out_ties():
    better, worse = pair(0)
    labels = [Preference(better, worse), Preference(better, worse), Preference(worse, better), Preference(worse, worse)]
    assert agreement(labels, count_good) == pytest.approx(2 / 3)
