"""The automaton, on sentences judged by hand."""

from random import Random

import pytest

from sail.testbed.grammar import count_ungrammatical, first_clause
from sail.testbed.words import VOCABULARY
from sail.testbed.writers import CAREFUL, Style, all_prompts, write_review


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("the film was good .", 0),
        ("the film was very good .", 0),
        ("the film was good and the staff was rude but the mood was plain .", 0),
        ("the film was good . the staff was rude .", 0),
        ("the film film was good .", 1),  # the second noun
        ("film was good .", 1),  # no article: reading goes on from the noun
        ("the film was very very good .", 1),  # one intensifier at most
        ("the film was very .", 1),  # an intensifier needs an adjective
        ("the film was good good .", 1),
        ("good the film was .", 3),  # good, the and . are out of place; film and was follow well
        ("the paris film was good .", 1),  # a prompt word is skipped: film still follows the
        ("the <unk> was good .", 2),  # skipped too, so was follows the
        ("the film was good and", 1),  # the end after a joiner
        ("the film was good", 1),  # the end before the stop
        ("", 1),  # the end at the start
    ],
)
def test_a_finished_review_counts_its_tokens_out_of_place(text: str, errors: int):
    assert count_ungrammatical(text.split(), finished=True) == errors


def test_a_cut_review_has_no_end_to_judge():
    assert count_ungrammatical(["the", "film", "was", "good", "and"], finished=False) == 0


@pytest.mark.parametrize("mark", ["and", "but", "."])
def test_the_first_clause_ends_before_its_joiner_or_stop(mark: str):
    clause = ["the", "film", "was", "good"]
    assert first_clause([*clause, mark, "the", "staff", "was", "rude", "."]) == clause


def test_without_joiner_or_stop_all_is_the_first_clause():
    assert first_clause(["the", "film", "was"]) == ["the", "film", "was"]


def test_the_writers_follow_the_grammar_when_they_do_not_slip():
    never_slips = Style(0.5, 0.4, 0.4, 0.5, slip=0.0, clauses=(1, 1, 1, 1))
    random = Random(0)
    reviews = [write_review("film in paris on monday", never_slips, random) for _ in range(200)]
    assert all(count_ungrammatical(review.split(), finished=True) == 0 for review in reviews)


def test_every_written_word_is_in_the_vocabulary_of_128():
    random = Random(0)
    prompts = all_prompts(random)
    reviews = [write_review(prompt, CAREFUL, random) for prompt in prompts[:200]]
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 128
    assert {word for text in [*prompts, *reviews] for word in text.split()} <= set(VOCABULARY)


def test_no_prompt_comes_twice():
    prompts = all_prompts(Random(0))
    assert len(prompts) == len(set(prompts)) == 7680
