"""KTO's strangers: every prompt meets the response of another, whatever the sizes of the groups."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sail.core.errors import UserError
from sail.core.records import Prompt, ResponseRow, SampleGroup, index_responses
from sail.labeling.mismatch import mismatched, mismatched_groups

from .doubles import make_prompt, make_sample


def groups_of(sizes: list[int]) -> list[SampleGroup]:
    return [
        SampleGroup(
            make_prompt(f"prompt {p}"),
            tuple(make_sample(f"{p}-{i}", " ".join(["good"] * (p + 1))) for i in range(size)),
        )
        for p, size in enumerate(sizes)
    ]


def rows_of(groups: list[SampleGroup]) -> list[ResponseRow]:
    return [row_of(group.prompt, sample.response_id) for group in groups for sample in group.samples]


def row_of(prompt: Prompt, response_id: str) -> ResponseRow:
    return ResponseRow(
        row_id=f"row-{response_id}", prompt_id=prompt.prompt_id, response_id=response_id, round_index=0, labeler="rm",
        labeler_digest="d", score=None, target=1.0, tag="", mismatched_id="", prompt=prompt.messages, completion=(),
    )  # fmt: skip


SIZES = st.lists(st.integers(1, 9), min_size=2, max_size=12)
FITTING = SIZES.filter(lambda sizes: 2 * max(sizes) <= sum(sizes))
untimed = settings(deadline=None)  # a loaded machine is no failure


@untimed
@given(FITTING, st.integers(0, 2**32))
def test_strangers_are_a_bijection_that_leaves_nothing_with_its_own_prompt(sizes: list[int], seed: int) -> None:
    rows = rows_of(groups_of(sizes))
    done = mismatched(rows, seed, "routes.kto")
    prompt_of = {row.response_id: row.prompt_id for row in rows}
    assert [row.row_id for row in done] == [row.row_id for row in rows]
    assert Counter(row.mismatched_id for row in done) == Counter(row.response_id for row in rows)
    assert all(prompt_of[row.mismatched_id] != row.prompt_id for row in done)


@untimed
@given(SIZES.map(lambda sizes: [*sizes, sum(sizes) + 1]))
def test_a_prompt_with_more_than_half_of_all_responses_is_refused(sizes: list[int]) -> None:
    problem = f"routes.kto: one prompt has {max(sizes)} of {sum(sizes)} responses.*more prompts"
    with pytest.raises(UserError, match=problem):
        mismatched(rows_of(groups_of(sizes)), 7, "routes.kto")


def test_a_single_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="1 of 1 responses"):
        mismatched(rows_of(groups_of([1])), 7, "routes.kto")


@untimed
@given(FITTING)
def test_strangers_hang_on_the_rows_and_the_seed_and_not_on_the_order(sizes: list[int]) -> None:
    rows = rows_of(groups_of(sizes))
    first, second = (
        {row.row_id: row.mismatched_id for row in mismatched(order, 7, "r")} for order in (rows, rows[::-1])
    )
    assert first == second


def test_another_seed_gives_other_strangers() -> None:
    rows = rows_of(groups_of([1] * 8))
    first, second = ([row.mismatched_id for row in mismatched(rows, seed, "r")] for seed in (7, 8))
    assert first != second


def test_strangers_stand_behind_the_prompt_they_were_given_to_with_their_own_tokens() -> None:
    groups = groups_of([2, 1, 1])
    done = mismatched(rows_of(groups), 7, "r")
    index = index_responses(groups)
    strangers = mismatched_groups(done, index)
    assert [group.prompt for group in strangers] == [group.prompt for group in groups]
    found = index_responses(strangers)
    for row in done:
        prompt, sample = found[row.mismatched_response_id]
        assert prompt.prompt_id == row.prompt_id
        assert sample.token_ids == index[row.mismatched_id][1].token_ids
