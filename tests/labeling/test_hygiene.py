"""What never reaches the update, and how it is counted."""

from dataclasses import replace

import pytest

from sail.core.errors import UserError
from sail.core.metrics import METRICS
from sail.core.records import SampleGroup
from sail.core.route_settings import HygieneSettings
from sail.core.store import Store
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses

from .doubles import make_group, make_prompt, make_sample
from .stored import pairs_of, read_pairs, scored, write_groups

HARD = PairingOptions("all", "hard", seed=7)


@pytest.mark.parametrize(
    ("sail_coef", "ties", "kept"), [(0.0, None, 0), (0.1, None, 1), (0.0, "keep", 1), (0.1, "drop", 0)]
)
def test_hard_ties_go_where_nothing_is_sampled_and_stay_as_one_half_elsewhere(
    store: Store, sail_coef: float, ties: str | None, kept: int
) -> None:
    groups = [make_group("film", "good", "bad"), make_group("book", "good", "bad")]
    evidence = scored(store, groups, 1.0, 1.0, 2.0, 1.0)
    options = PairingOptions("all", "hard", 7, sail_coef=sail_coef, hygiene=HygieneSettings(ties=ties))
    artifact = pair_responses(store, write_groups(store, groups), evidence, options)
    tied = [pair for pair in read_pairs(artifact) if pair.verdict == "tie"]
    assert [pair.p_a for pair in tied] == [0.5] * kept
    assert artifact.result()["labels/dropped_ties"] == 1 - kept
    assert artifact.result()["labels/pairs"] == 1 + kept


def test_a_soft_label_of_one_half_is_no_tie(store: Store) -> None:
    groups = [make_group("film", "good", "bad")]
    evidence, options = scored(store, groups, 1.0, 1.0), PairingOptions("all", "soft", 7)
    (pair,) = pairs_of(store, write_groups(store, groups), evidence, options)
    assert (pair.p_a, pair.verdict) == (0.5, "tie")


def test_every_drop_is_counted_under_its_metric(store: Store) -> None:
    prompt = make_prompt("song")
    mixed = [
        make_sample("s-0", "good .", "eos"),
        make_sample("s-1", "the song was", "length"),
        make_sample("s-2", " ", "eos"),
        make_sample("s-3", "good .", "eos"),
        make_sample("s-4", "bad", "stop_string"),
        make_sample("s-5", "dull", "eos"),
        make_sample("s-6", "awful", "eos"),
        make_sample("s-7", "the", "abort"),
    ]
    groups = [SampleGroup(prompt, tuple(mixed))]
    # usable: 0, 3, 4, 5, 6; ten pairs: 0-3 identical, 0-5 and 3-5 tied, the four of 4 too close, 0-6, 3-6, 5-6 stay
    evidence = scored(store, groups, 1.0, 9.0, 9.0, 1.0, 0.5, 1.0, 0.0, 9.0)
    options = PairingOptions("all", "hard", 7, hygiene=HygieneSettings(min_margin=0.75))
    artifact = pair_responses(store, write_groups(store, groups), evidence, options)
    assert [(pair.a_id, pair.b_id) for pair in read_pairs(artifact)] == [("s-0", "s-6"), ("s-3", "s-6"), ("s-5", "s-6")]
    assert artifact.result() == {
        "labels/pairs": 3, "labels/dropped_truncated": 1, "labels/dropped_empty": 1,
        "labels/dropped_identical": 1, "labels/dropped_ties": 2, "labels/dropped_margin": 4,
        "labels/dropped_held_out": 0, "labels/dropped_abstained": 0, "labels/dropped_errors": 0,
        "labels/dropped_aborted": 1,
        "quality/confidence": 1.0, "quality/longer_wins": 1.0,
        "quality/margin_p10": 1.0, "quality/margin_p50": 1.0, "quality/margin_p90": 1.0,
    }  # fmt: skip
    assert METRICS.keys() >= artifact.result().keys()


def test_truncated_samples_may_stay_and_are_marked(store: Store) -> None:
    groups = [SampleGroup(make_prompt("song"), (make_sample("s-0", "good ."), make_sample("s-1", "the", "length")))]
    options = PairingOptions("all", "hard", 7, hygiene=HygieneSettings(truncated="keep"))
    evidence = scored(store, groups, 1.0, 0.0)
    (pair,) = pairs_of(store, write_groups(store, groups), evidence, options)
    assert (pair.truncated_a, pair.truncated_b) == (False, True)


def test_a_kept_truncated_sample_pays_the_missing_eos_penalty(store: Store) -> None:
    groups = [SampleGroup(make_prompt("song"), (make_sample("s-0", "good ."), make_sample("s-1", "the", "length")))]
    options = PairingOptions("all", "hard", 7, hygiene=HygieneSettings(truncated="keep", missing_eos_penalty=1.5))
    evidence = scored(store, groups, 1.0, 2.0)
    (free,) = pairs_of(store, write_groups(store, groups), evidence, options)
    (pair,) = pairs_of(store, write_groups(store, groups), replace(evidence, missing_eos_penalty=1.5), options)
    assert (free.verdict, pair.verdict, pair.score_a, pair.score_b) == ("B", "A", 1.0, 0.5)


def test_near_ties_go_by_the_margin(store: Store) -> None:
    groups = [make_group("film", "good", "bad"), make_group("book", "good", "bad")]
    evidence = scored(store, groups, 1.0, 1.4, 1.0, 1.5)
    options = PairingOptions("all", "soft", 7, hygiene=HygieneSettings(min_margin=0.5))
    artifact = pair_responses(store, write_groups(store, groups), evidence, options)
    assert [pair.score_b for pair in read_pairs(artifact)] == [1.5]
    assert artifact.result()["labels/dropped_margin"] == 1


def test_identical_responses_stay_where_the_score_term_needs_them(store: Store) -> None:
    groups = [make_group("film", "good", "good"), make_group("book", "good", "bad")]
    evidence, responses = scored(store, groups, 1.0, 1.0, 2.0, 1.0), write_groups(store, groups)
    counts = [
        pair_responses(store, responses, evidence, PairingOptions("all", "soft", 7, sail_coef=c)).result()
        for c in (0.0, 0.2)
    ]
    assert [(count["labels/pairs"], count["labels/dropped_identical"]) for count in counts] == [(1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("texts", "scores", "message"),
    [
        (("good", "good"), (1.0, 1.0), r"no pair is left of 1 prompts: dropped 1 identical\. Sample at a higher"),
        (("good", "bad"), (1.0, 1.0), r"dropped 1 ties\. Use label_mode: soft"),
        (("", "bad"), (1.0, 0.0), r"dropped 1 empty\. Look at the samples"),
        (("good",), (1.0,), r"dropped none\. A pair needs two responses"),
    ],
)
def test_nothing_left_says_why_and_what_to_do(
    store: Store, texts: tuple[str, ...], scores: tuple[float, ...], message: str
) -> None:
    groups = [make_group("film", *texts)]
    with pytest.raises(UserError, match=message):
        pair_responses(store, write_groups(store, groups), scored(store, groups, *scores), HARD)
