"""Scorers that are no models: a regular expression, several scorers as one."""

import json
import math
from pathlib import Path

import pytest

from sail.core.errors import UserError
from sail.core.labeler_settings import EnsembleLabeler, RuleLabeler
from sail.core.records import SampleGroup, ScoredGroup
from sail.core.store import Store
from sail.labeling.labelers.ensemble import combine_scores
from sail.labeling.scores import make_labeler, score_responses

from .doubles import make_group
from .stored import write_groups, write_scores


def scores_of(store: Store, groups: list[SampleGroup], settings: RuleLabeler) -> list[tuple[float, ...]]:
    artifact = score_responses(store, write_groups(store, groups), make_labeler("rule", settings))
    return [row.scores for row in artifact.read(ScoredGroup, "scores")]


def test_a_rule_finds_or_does_not(store: Store) -> None:
    groups = [make_group("film", "so it is 42", "I cannot say")]
    assert scores_of(store, groups, RuleLabeler(regex=r"\d+")) == [(1.0, 0.0)]


def test_a_rule_compares_the_last_match_with_the_answer(store: Store, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [{"prompt": "6 times 7", "answer": "42"}, {"prompt": "a\u2028b", "answer": "c"}]
    answers.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    settings = RuleLabeler(regex=r"answer is (\S+)", answers=str(answers))
    groups = [make_group("6 times 7", "answer is 41 no answer is 42", "answer is 41", "42")]
    assert scores_of(store, groups, settings) == [(1.0, 0.0, 0.0)]
    with pytest.raises(UserError, match=r"labelers\.rule\.answers: no answer to '2 and 2'"):
        scores_of(store, [make_group("2 and 2", "answer is 4", "answer is 5")], settings)
    before = make_labeler("rule", settings).digest
    answers.write_text(json.dumps({"prompt": "6 times 7", "answer": "43"}) + "\n")
    assert make_labeler("rule", settings).digest != before


def test_a_rule_that_is_no_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="no regular expression"):
        RuleLabeler(regex="(")


def combined(store: Store, settings: EnsembleLabeler, now: list[list[float]], first: list[list[float]]) -> list[float]:
    """Scores of one prompt's responses; a row of `now` and `first` is a member."""
    group = [make_group("film", *[f"good {n}" for n in range(len(now[0]))])]
    ids = [sample.response_id for sample in group[0].samples]
    both = [
        {str(m): write_scores(store, group, dict(zip(ids, row, strict=True))) for m, row in enumerate(rows)}
        for rows in (now, first)
    ]
    (scored,) = combine_scores(store, *both, settings).read(ScoredGroup, "scores")
    return list(scored.scores)


NOW = [[1.0, 3.0, 5.0], [10.0, 0.0, 20.0]]
OF = ("x", "y")


def test_an_ensemble_takes_the_mean_the_worst_or_the_mean_less_the_spread(store: Store) -> None:
    plain = {"of": OF, "normalize": False}
    assert combined(store, EnsembleLabeler(**plain), NOW, NOW) == [5.5, 1.5, 12.5]
    assert combined(store, EnsembleLabeler(**plain, combine="min"), NOW, NOW) == [1.0, 0.0, 5.0]
    spread = EnsembleLabeler(**plain, combine="mean_minus_std", k=2.0)
    assert combined(store, spread, NOW, NOW) == [5.5 - 9.0, 1.5 - 3.0, 12.5 - 15.0]


def test_the_units_are_those_of_the_first_round_and_stay_there(store: Store) -> None:
    first = [[0.0, 2.0, 4.0], [5.0, 5.0, 5.0]]  # mean 2, std sqrt(8 / 3); mean 5, no spread: std 1
    std = math.sqrt(8 / 3)
    found = combined(store, EnsembleLabeler(of=OF), NOW, first)
    assert found == pytest.approx([(-1 / std + 5) / 2, (1 / std - 5) / 2, (3 / std + 15) / 2])


def test_a_member_without_a_score_leaves_the_ensemble_without_one(store: Store) -> None:
    found = combined(store, EnsembleLabeler(of=OF, combine="min"), [[1.0, math.nan], [2.0, 3.0]], [[1.0, 2.0]] * 2)
    assert [math.isnan(score) for score in found] == [False, True]
