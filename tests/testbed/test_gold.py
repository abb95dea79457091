"""The gold rewards, worked by hand."""

import subprocess
import sys

import pytest

from sail.core.records import Example
from sail.testbed.gold import hump, linear


def example(response: str, finished: bool = True, prompt: str = "film in paris on monday") -> Example:
    return Example(({"role": "user", "content": prompt},), response, finished)


BEST = "the film was very good . the staff was great . the mood was lovely ."
FOUR = "the film was very good . the staff was great . the mood was lovely . the view was superb ."


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("the film was plain .", 1.0),  # the topic alone
        ("the book was plain .", 0.0),
        ("the book was plain and the film was small .", 0.0),  # the topic too late
        ("the film was good .", 2.0),  # 1 + 1 praise
        ("the film was very good .", 2.5),  # + .5 intensifier
        ("the film was very good and the staff was really great .", 2.75),  # 1 + 2 + .5 - .75 second intensifier
        ("the film was bad .", 0.0),  # 1 - 1
        ("the film was good and the staff was good .", 1.0),  # 1 + 1 distinct - 1 repeat
        ("the film was bad and the staff was bad .", -2.0),  # 1 - 2 negative - 1 repeat
        ("the film was plain and the staff was plain .", 0.0),  # 1 - 1: neutral words repeat too
        (BEST, 4.2),  # 1 + 3 + .5, sixteen words: - .15 x 2
        (FOUR, 2.7),  # 1 + 3 + .5 - .75 for the fourth, twenty-one words: - .15 x 7
        ("the film film was good .", 1.75),  # 1 + 1 - .25
        ("", -0.25),  # the end out of place
    ],
)
def test_the_hump_of_a_finished_response(response: str, reward: float):
    assert hump([example(response)]) == pytest.approx([reward])


def test_the_hump_takes_two_for_a_missing_end():
    assert hump([example("the film was good .", finished=False)]) == pytest.approx([0.0])  # 1 + 1 - 2
    assert hump([example("the film was good and", finished=False)]) == pytest.approx([0.0])  # no end, none misplaced
    assert hump([example("the film was good and")]) == pytest.approx([1.75])  # 1 + 1 - .25 for the end after "and"


@pytest.mark.parametrize(
    ("response", "finished", "reward"),
    [
        ("the film was good .", True, 2.0),  # 1 praise + 1 topic
        ("the book was good .", True, 1.0),
        (BEST, True, 4.5),  # 3 + .5 + 1
        (FOUR, True, 5.5),  # no hump
        ("the film was very very bad .", True, 1.0),  # - 1 + 2 x .5 + 1
        ("the film was good .", False, 0.0),  # 1 + 1 - 2
    ],
)
def test_the_linear_reward_adds_up(response: str, finished: bool, reward: float):
    assert linear([example(response, finished)]) == pytest.approx([reward])


def test_only_the_topic_of_the_prompt_matters():
    review = "the film was good ."
    elsewhere = example(review, prompt="film in oslo on easter")
    another_topic = example(review, prompt="book in paris on monday")
    assert hump([example(review), elsewhere, another_topic]) == pytest.approx([2.0, 2.0, 1.0])


def test_rewards_keep_the_order_and_number_of_examples():
    examples = [example("the film was good ."), example("the film was bad ."), example("the film was plain .")]
    assert hump(examples) == pytest.approx([2.0, 0.0, 1.0])
    assert hump([]) == []


def test_the_gold_rewards_need_no_torch():
    code = "import sys, sail.testbed.gold; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
