"""External rewards and what is refused of scorers."""

import math

import pytest

from sail.core.errors import UserError
from sail.evaluation.rewards import check_scores, mean_reward, reward_standard_error

from .doubles import group, scores


def test_the_mean_and_its_error_are_over_prompts() -> None:
    scored = [scores("a", 0.0, 2.0), scores("b", 3.0, 3.0), scores("c", 5.0, 5.0)]  # prompt means 1, 3, 5
    assert mean_reward(scored) == pytest.approx(3.0)
    assert reward_standard_error(scored) == pytest.approx(2.0 / math.sqrt(3))


def test_one_prompt_has_no_error() -> None:
    assert reward_standard_error([scores("a", 0.0, 2.0)]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scorer_that_gives_no_number_is_named(value: float) -> None:
    with pytest.raises(UserError, match=r"'rm' gave .* for response p-a-1"):
        check_scores([group("a", [(3,), (4,)])], [scores("a", 1.0, value)], "rm")


def test_samples_and_scores_must_be_the_same_responses() -> None:
    with pytest.raises(ValueError, match="1 responses without a score, 0 scores without a response"):
        check_scores([group("a", [(3,), (4,)])], [scores("a", 1.0)], "rm")
