"""Labels by the dataset and by the policy."""

import math
from dataclasses import replace
from typing import Literal

import pytest

from sail.core.errors import UserError
from sail.core.records import LabelMode, SampleGroup
from sail.core.route_settings import HygieneSettings
from sail.core.store import Recipe, Store
from sail.labeling import DatasetEvidence, PolicyEvidence
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses

from .doubles import make_group, make_prompt
from .stored import pairs_of, read_pairs, scored, verdict_of, write_data, write_groups, write_logps

When = Literal["fresh", "frozen"]
HARD = PairingOptions("all", "hard", seed=7)
ROWS = [("film", "the film was good .", "bad"), ("book", "great .", "the book was dull .")]


# --- labels by the dataset


def test_dataset_pairs_keep_the_dataset_order_of_preference(store: Store) -> None:
    data = write_data(store, ROWS)
    artifact = pair_responses(store, data, DatasetEvidence(data, "prefs"), PairingOptions("verdicts", "hard", 7))
    pairs = read_pairs(artifact)
    assert [pair.prompt_id for pair in pairs] == [make_prompt(row[0]).prompt_id for row in ROWS]
    for pair, (_, chosen, rejected) in zip(pairs, ROWS, strict=True):
        assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == (chosen, rejected)
        assert pair.p_a == (1.0 if pair.a_id.endswith("-0") else 0.0)
        assert (pair.labeler, pair.labeler_digest, pair.score_a) == ("prefs", data.key, None)
        assert not pair.truncated_a


def test_soft_dataset_labels_need_scores(store: Store) -> None:
    groups = [make_group("film", "good", "bad", stop_kind="dataset")]
    options = PairingOptions("verdicts", "soft", 7)
    with_scores = write_groups(store, groups, [verdict_of(groups[0], (3.0, 1.0))])
    (pair,) = pairs_of(store, with_scores, DatasetEvidence(with_scores, "prefs", 2.0), options)
    p_chosen = 1 / (1 + math.exp(-1.0))
    assert pair.p_a == pytest.approx(p_chosen if pair.score_a == 3.0 else 1 - p_chosen, abs=1e-15)
    assert {pair.score_a, pair.score_b} == {3.0, 1.0}
    without = write_groups(store, groups, [verdict_of(groups[0])])
    with pytest.raises(UserError, match="needs scores of both responses"):
        pair_responses(store, without, DatasetEvidence(without, "prefs"), options)


def test_a_hard_dataset_label_is_the_verdict_even_where_the_scores_disagree(store: Store) -> None:
    groups = [make_group(f"{number} film", "good", "bad", stop_kind="dataset") for number in range(4)]
    data = write_groups(store, groups, [verdict_of(group, (1.0, 2.0)) for group in groups])
    pairs = pairs_of(store, data, DatasetEvidence(data, "prefs"), PairingOptions("verdicts", "hard", 7))
    assert {pair.chosen[0]["content"] for pair in pairs} == {"good"}
    assert [pair.p_a for pair in pairs] == [1.0 if pair.score_a == 1.0 else 0.0 for pair in pairs]


def test_a_dataset_may_say_itself_how_sure_it_is(store: Store) -> None:
    groups = [make_group(f"{number} film", "good", "bad", stop_kind="dataset") for number in range(2)]
    verdicts = [replace(verdict_of(group, (3.0, 1.0)), p_chosen=p) for group, p in zip(groups, (0.8, 0.5), strict=True)]
    data = write_groups(store, groups, verdicts)
    soft, tie = pairs_of(store, data, DatasetEvidence(data, "prefs"), PairingOptions("verdicts", "soft", 7))
    assert soft.p_a == pytest.approx(0.8 if soft.score_a == 3.0 else 0.2)
    assert (tie.p_a, tie.verdict) == (0.5, "tie")


def test_a_reward_model_fitted_here_brings_its_temperature(store: Store) -> None:
    groups = [make_group("film", "good", "bad")]
    fitted = store.build(Recipe("reward", 1, {}, {}), lambda workspace: {"reward/temperature": 4.0})
    evidence = replace(scored(store, groups, 2.0, 0.0), temperature=fitted)
    options = PairingOptions("all", "soft", seed=7)
    (pair,) = pairs_of(store, write_groups(store, groups), evidence, options)
    assert pair.p_a == pytest.approx(1 / (1 + math.exp(-2.0 / 4.0)))
    assert evidence.recipe("soft")["temperature"] == "calibrated" and evidence.inputs()["temperature"] is fitted
    assert "temperature" not in evidence.recipe("hard")


def test_a_dataset_does_not_label_what_it_has_not_seen(store: Store) -> None:
    samples = write_groups(store, [make_group("film", "good", "bad")])
    with pytest.raises(UserError, match="verdicts on its own responses only"):
        pair_responses(store, samples, DatasetEvidence(write_data(store, ROWS), "prefs"), HARD)


def test_a_reward_model_may_overrule_the_dataset(store: Store) -> None:
    group = make_group("film", "good", "bad", stop_kind="dataset")
    data = write_groups(store, [group], [verdict_of(group)])
    (pair,) = read_pairs(
        pair_responses(store, data, scored(store, [group], 0.0, 1.0), PairingOptions("verdicts", "hard", 7))
    )
    assert pair.chosen[0]["content"] == "bad"


# --- labels by the policy


def policy_evidence(store: Store, group: SampleGroup, when: When, loss: str = "dpo") -> PolicyEvidence:
    """h_0 = -5 - -9 = 4, h_1 = -3 - -1 = -2: with beta .5, q = sigmoid(3)."""
    ids = [sample.response_id for sample in group.samples]
    policy = write_logps(store, dict(zip(ids, (-5.0, -3.0), strict=True)))
    reference = write_logps(store, dict(zip(ids, (-9.0, -1.0), strict=True)))
    return PolicyEvidence(policy, reference, loss, {"beta": 0.5} if loss in ("dpo", "sigmoid") else {}, when)


@pytest.mark.parametrize(
    ("when", "mode", "p_a", "source"),
    [
        ("frozen", "hard", 1.0, "others"),
        ("frozen", "soft", 0.9525741268224334, "others"),
        ("fresh", "soft", 0.9525741268224334, "fresh"),
        ("fresh", "sampled", 0.9525741268224334, "fresh"),
    ],
)
def test_the_policy_labels_by_its_link(store: Store, when: When, mode: LabelMode, p_a: float, source: str) -> None:
    group = make_group("film", "good", "bad")
    evidence = policy_evidence(store, group, when)
    (pair,) = pairs_of(store, write_groups(store, [group]), evidence, PairingOptions("all", mode, 7))
    assert pair.p_a == pytest.approx(p_a, abs=1e-15)
    assert (pair.source, pair.score_a, pair.score_b) == (source, 4.0, -2.0)
    assert pair.labeler_digest == evidence.policy_logps.key
    if source == "fresh":
        assert pair.verdict == ("A" if pair.draw < p_a else "B")
        assert pair.chosen[0]["content"] == ("good" if pair.verdict == "A" else "bad")


def test_fresh_pairs_lose_nothing_to_margins_or_ties(store: Store) -> None:
    group = make_group("film", "good", "bad")
    ids = [sample.response_id for sample in group.samples]
    same = write_logps(store, dict.fromkeys(ids, -4.0))
    options = PairingOptions("all", "hard", 7, hygiene=HygieneSettings(min_margin=5.0))
    (pair,) = read_pairs(
        pair_responses(store, write_groups(store, [group]), PolicyEvidence(same, same, "dpo"), options)
    )
    assert (pair.p_a, pair.verdict) == (0.5, "A" if pair.draw < 0.5 else "B")
    with pytest.raises(UserError, match="a policy that equals its reference prefers nothing"):
        pair_responses(store, write_groups(store, [group]), PolicyEvidence(same, same, "dpo", when="frozen"), HARD)


def test_a_loss_without_a_link_labels_nothing(store: Store) -> None:
    group = make_group("film", "good", "bad")
    with pytest.raises(UserError, match="'slic' says nothing about preferences"):
        pair_responses(store, write_groups(store, [group]), policy_evidence(store, group, "fresh", "slic"), HARD)


def test_an_alias_of_a_loss_shares_its_pairs(store: Store) -> None:
    group = make_group("film", "good", "bad")
    responses = write_groups(store, [group])
    by_name, by_alias = (policy_evidence(store, group, "fresh", loss) for loss in ("dpo", "sigmoid"))
    assert pair_responses(store, responses, by_name, HARD) == pair_responses(store, responses, by_alias, HARD)
