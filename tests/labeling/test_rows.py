"""The rows stage: each response that a pointwise loss learns from, once."""

from dataclasses import replace

import pytest

from sail.core.errors import UserError
from sail.core.records import DatasetVerdict, ResponseRow, SampleGroup
from sail.core.route_settings import HygieneSettings
from sail.core.store import Store
from sail.labeling.ratings import Kind, RatingOptions, ScoredRatings
from sail.labeling.rows import RowOptions, response_rows

from .doubles import make_group, make_prompt, make_sample
from .stored import scored, verdict_of, write_groups


def test_a_preference_dataset_gives_its_chosen_responses_once_and_demonstrations_all(store: Store) -> None:
    judged = make_group("film", "good", "bad", "great", stop_kind="dataset")
    good, bad, great = (sample.response_id for sample in judged.samples)
    demonstrations = make_group("book", "lovely", "dull", stop_kind="dataset")
    verdicts = [verdict_of(judged), DatasetVerdict(judged.prompt.prompt_id, good, great, None, None)]
    artifact = response_rows(
        store, write_groups(store, [judged, demonstrations], verdicts), None, RowOptions(round_index=2)
    )
    rows = artifact.read(ResponseRow, "rows")
    assert [row.response_id for row in rows] == [good, *(sample.response_id for sample in demonstrations.samples)]
    assert bad not in {row.response_id for row in rows}
    assert rows[0].prompt == ({"role": "user", "content": "film"},)
    assert rows[0].completion == ({"role": "assistant", "content": "good"},)
    assert {row.round_index for row in rows} == {2}
    assert len({row.row_id for row in rows}) == 3


def test_samples_of_the_policy_pass_hygiene_and_drops_are_counted(store: Store) -> None:
    samples = (make_sample("s-0", "good"), make_sample("s-1", "the film", "length"), make_sample("s-2", "  "))
    responses = write_groups(store, [SampleGroup(make_prompt("film"), samples)])
    artifact = response_rows(store, responses, None, RowOptions())
    dropped = {"labels/dropped_truncated": 1, "labels/dropped_empty": 1, "labels/dropped_held_out": 0}
    dropped |= {"labels/dropped_unrated": 0, "labels/dropped_filtered": 0}
    assert artifact.result() == {"rows": 1, **dropped}
    kept = response_rows(store, responses, None, RowOptions(hygiene=HygieneSettings(truncated="keep")))
    assert [row.response_id for row in kept.read(ResponseRow, "rows")] == ["s-0", "s-1"]


def test_hygiene_of_pairs_does_not_change_the_key_of_rows(store: Store) -> None:
    responses = write_groups(store, [make_group("film", "good")])
    plain, margin = RowOptions(), RowOptions(hygiene=HygieneSettings(min_margin=1.0))
    assert response_rows(store, responses, None, plain) == response_rows(store, responses, None, margin)


def test_rows_are_made_anew_where_the_missing_eos_penalty_changes(store: Store) -> None:
    groups = [SampleGroup(make_prompt("song"), (make_sample("s-0", "good ."), make_sample("s-1", "the", "length")))]
    responses, evidence = write_groups(store, groups), scored(store, groups, 1.0, 2.0)
    options = RowOptions(RatingOptions("score", normalize="none"), hygiene=HygieneSettings(truncated="keep"))
    made = {
        penalty: response_rows(
            store, responses, ScoredRatings(replace(evidence, missing_eos_penalty=penalty)), options
        ).read(ResponseRow, "rows")
        for penalty in (0.0, 1.5, 3.0)
    }
    targets = {penalty: [row.target for row in rows] for penalty, rows in made.items()}
    assert targets == {0.0: [1.0, 2.0], 1.5: [1.0, 0.5], 3.0: [1.0, -1.0]}


def test_a_temperature_changes_the_rows_of_win_rates_alone(store: Store) -> None:
    groups = [make_group("film", "good", "bad")]
    responses = write_groups(store, groups)

    def rows(temperature: float, kind: Kind) -> str:
        labeler = ScoredRatings(scored(store, groups, 1.0, 0.0, temperature=temperature))
        return response_rows(store, responses, labeler, RowOptions(RatingOptions(kind))).key

    assert rows(1.0, "win_rate") != rows(2.0, "win_rate")
    assert rows(1.0, "score") == rows(2.0, "score")


def test_nothing_left_is_an_error_with_a_cure(store: Store) -> None:
    responses = write_groups(store, [SampleGroup(make_prompt("film"), (make_sample("s-0", "the", "length"),))])
    with pytest.raises(UserError, match=r"routes\.sft: no response is left of 1 prompts: dropped 1 truncated\. Raise"):
        response_rows(store, responses, None, RowOptions(where="routes.sft"))
