"""From verdicts, ratings and scores to what a loss of single responses reads, by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.labeler_settings import ReplayLabeler
from sail.core.records import DatasetRating, DatasetVerdict, SampleGroup, content_hash
from sail.core.store import Recipe, Store, Workspace
from sail.labeling.evidence import VerdictEvidence
from sail.labeling.labelers.replay import replay_labeler
from sail.labeling.ratings import DatasetRatings, Rating, RatingOptions, Ratings, ScoredRatings, targets
from sail.labeling.verdicts import compare_responses

from .doubles import make_group
from .stored import scored, write_groups

FILM = make_group("film", "good", "bad", "great")
BOOK = make_group("book", "lovely", "dull")
A, B, C = (sample.response_id for sample in FILM.samples)
D, E = (sample.response_id for sample in BOOK.samples)


def by_scores(*scores: float | None) -> Ratings:
    return Ratings(dict(zip((A, B, C, D, E), map(Rating, scores), strict=False)), "rm", "d1g357")


def thumbs_and_counts(ratings: Ratings, **options: float) -> tuple[dict[str, float], dict[str, float]]:
    return targets([FILM, BOOK], ratings, RatingOptions("thumbs", **options), "routes.kto")


def data_of(store: Store, verdicts: Sequence[DatasetVerdict], ratings: Sequence[DatasetRating]) -> Artifact:
    def run(workspace: Workspace) -> dict[str, int]:
        workspace.write("groups", [FILM, BOOK], SampleGroup)
        workspace.write("verdicts", verdicts, DatasetVerdict)
        workspace.write("ratings", ratings, DatasetRating)
        return {}

    return store.build(Recipe("data", 1, {"content": content_hash([repr(verdicts), repr(ratings)])}, {}), run)


def read(store: Store, verdicts: Sequence[DatasetVerdict], ratings: Sequence[DatasetRating] = ()) -> dict[str, Rating]:
    data = data_of(store, verdicts, ratings)
    return dict(DatasetRatings(data, "prefs").read(data).by_response)


# ---- what a dataset says -------------------------------------------------------------------------------------------


def test_the_sides_of_a_pair_are_a_thumb_up_and_one_down_with_their_scores(store: Store) -> None:
    film = FILM.prompt.prompt_id
    known = read(store, [DatasetVerdict(film, A, B, 7.0, 2.0), DatasetVerdict(BOOK.prompt.prompt_id, D, E, None, None)])
    assert known == {A: Rating(7.0, True), B: Rating(2.0, False), D: Rating(None, True), E: Rating(None, False)}


def test_a_response_that_won_once_and_lost_once_keeps_its_score_and_has_no_thumb(store: Store) -> None:
    film = FILM.prompt.prompt_id
    verdicts = [DatasetVerdict(film, A, B, 7.0, 5.0), DatasetVerdict(film, B, C, 5.0, 1.0)]
    for order in (verdicts, verdicts[::-1]):
        known = read(store, order)
        assert known == {A: Rating(7.0, True), B: Rating(5.0, None), C: Rating(1.0, False)}


def test_a_tie_points_no_thumb(store: Store) -> None:
    assert read(store, [DatasetVerdict(FILM.prompt.prompt_id, A, B, 7.0, 7.0, p_chosen=0.5)]) == {}


def test_a_rating_of_its_own_overrules_the_pairs(store: Store) -> None:
    film = FILM.prompt.prompt_id
    verdicts = [DatasetVerdict(film, A, B, None, None)]
    known = read(store, verdicts, [DatasetRating(film, B, 9.0, True), DatasetRating(film, C, None, False)])
    assert known == {A: Rating(None, True), B: Rating(9.0, True), C: Rating(None, False)}


def test_the_scores_of_a_labeler_are_ratings_without_thumbs(store: Store) -> None:
    groups = [FILM, BOOK]
    ratings = ScoredRatings(scored(store, groups, 1.0, 2.0, 3.0, 4.0, 5.0)).read(write_groups(store, groups))
    assert ratings.by_response[C] == Rating(3.0, None) and (ratings.labeler, ratings.digest) == ("rm", "d1g357")


# ---- thumbs --------------------------------------------------------------------------------------------------------


def test_thumbs_are_taken_as_they_are_and_unrated_responses_have_none() -> None:
    ratings = Ratings({A: Rating(None, True), B: Rating(3.0, False), C: Rating(9.0)}, "prefs", "d1g357")
    assert thumbs_and_counts(ratings) == ({A: 1.0, B: 0.0}, {"labels/thumbs_up_share": 0.5})


def test_scores_become_thumbs_above_their_mean_or_above_a_threshold_never_on_it() -> None:
    ratings = by_scores(0.0, 1.0, 5.0, 2.0)  # mean 2
    assert thumbs_and_counts(ratings)[0] == {A: 0.0, B: 0.0, C: 1.0, D: 0.0}
    assert thumbs_and_counts(ratings, threshold=0.0) == (
        {A: 0.0, B: 1.0, C: 1.0, D: 1.0}, {"labels/thumbs_up_share": 0.75},
    )  # fmt: skip


def test_a_threshold_overrules_thumbs_by_the_scores() -> None:
    ratings = Ratings({A: Rating(5.0, False), B: Rating(1.0, True), C: Rating(None, True)}, "prefs", "d1g357")
    assert thumbs_and_counts(ratings, threshold=3.0)[0] == {A: 1.0, B: 0.0}


@pytest.mark.parametrize(("ratings", "options", "problem"), [
    (by_scores(), {}, "need thumbs or scores, and these responses have none. Add a boolean column"),
    (Ratings({A: Rating(None, True)}, "p", "d"), {"threshold": 0.0}, "threshold needs scores.*Leave labels.threshold"),
    (by_scores(1.0, 2.0), {"threshold": 5.0}, "every thumb points down"),
    (by_scores(1.0, 2.0), {"threshold": 0.0}, "every thumb points up"),
    (by_scores(0.1, 0.1, 0.1), {}, "every thumb points down"),
])  # fmt: skip
def test_thumbs_that_tell_nothing_apart_are_refused(ratings: Ratings, options: dict[str, float], problem: str) -> None:
    with pytest.raises(UserError, match=f"routes.kto: .*{problem}"):
        thumbs_and_counts(ratings, **options)


# ---- scores --------------------------------------------------------------------------------------------------------


def test_scores_are_standardised_over_all_responses_of_the_route() -> None:
    known, counts = targets([FILM, BOOK], by_scores(1.0, 2.0, 3.0, 6.0), RatingOptions("score"), "r")
    deviation = math.sqrt((4 + 1 + 0 + 9) / 4)
    assert known == pytest.approx({A: -2 / deviation, B: -1 / deviation, C: 0.0, D: 3 / deviation})
    assert counts == {"labels/score_mean": 3.0, "labels/score_std": pytest.approx(deviation)}
    raw, same = targets([FILM, BOOK], by_scores(1.0, 2.0, 3.0, 6.0), RatingOptions("score", normalize="none"), "r")
    assert raw == {A: 1.0, B: 2.0, C: 3.0, D: 6.0} and same == counts


def test_equal_scores_are_all_at_the_mean_whatever_its_rounding() -> None:
    """The mean of three times 0.1 is 0.10000000000000002 in floating point."""
    known, counts = targets([FILM], by_scores(0.1, 0.1, 0.1), RatingOptions("score"), "r")
    assert known == {A: 0.0, B: 0.0, C: 0.0} and counts["labels/score_std"] == 0.0


@pytest.mark.parametrize("kind", ["score", "win_rate"])
def test_without_scores_the_error_names_the_labeler_and_the_columns(kind: str) -> None:
    nobody = Ratings({A: Rating(None, True)}, "prefs", "d1g357")
    with pytest.raises(UserError, match=f"labels as {kind} need scores, and 'prefs' has none.*score column"):
        targets([FILM, BOOK], nobody, RatingOptions(kind), "r")


# ---- win rates -----------------------------------------------------------------------------------------------------


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def test_a_win_rate_is_the_row_mean_of_the_sigmoid_matrix_itself_included() -> None:
    known, _ = targets([FILM, BOOK], by_scores(1.0, 2.0, 4.0, 0.5), RatingOptions("win_rate", temperature=2.0), "r")
    assert known == pytest.approx({
        A: (0.5 + sigmoid(-0.5) + sigmoid(-1.5)) / 3, B: (sigmoid(0.5) + 0.5 + sigmoid(-1.0)) / 3,
        C: (sigmoid(1.5) + sigmoid(1.0) + 0.5) / 3, D: 0.5,  # alone with its prompt: as good as itself
    })  # fmt: skip
    assert sum(known[id_] for id_ in (A, B, C)) == pytest.approx(1.5)


def test_without_a_temperature_win_rates_take_the_labelers_own() -> None:
    scores = by_scores(1.0, 2.0, 4.0, 0.5)
    own, _ = targets([FILM, BOOK], scores._replace(temperature=2.0), RatingOptions("win_rate"), "r")
    asked, _ = targets([FILM, BOOK], scores, RatingOptions("win_rate", temperature=2.0), "r")
    assert own == asked


def test_win_rates_of_scores_far_apart_are_certain_and_finite() -> None:
    known, _ = targets([BOOK], Ratings({D: Rating(1e6), E: Rating(-1e6)}, "rm", "d"), RatingOptions("win_rate"), "r")
    assert known == {D: pytest.approx(0.75), E: pytest.approx(0.25)}


def test_a_labeler_of_pairs_has_told_the_win_rates_and_nothing_squashes_them(store: Store, tmp_path: Path) -> None:
    """good beats bad for sure and great with .2; bad against great had no verdict."""
    told = [("good", "bad", {"p": 1.0}), ("great", "good", {"p": 0.8}), ("bad", "great", {"verdict": "abstain"})]
    lines = [json.dumps({"prompt": "film", "a": a, "b": b, **said}) for a, b, said in told]
    (tmp_path / "said.jsonl").write_text("\n".join(lines))
    people = replay_labeler("people", ReplayLabeler(path=str(tmp_path / "said.jsonl")))
    responses = write_groups(store, [FILM, BOOK])
    verdicts = compare_responses(store, responses, people, "all")
    ratings = ScoredRatings(VerdictEvidence(verdicts, "people", "d1g357", True)).read(responses)
    known, _ = targets([FILM, BOOK], ratings, RatingOptions("win_rate"), "r")
    assert known == pytest.approx({A: (0.5 + 1.0 + 0.2) / 3, B: (0.0 + 0.5) / 2, C: (0.8 + 0.5) / 2})
    without_great = replace(FILM, samples=FILM.samples[:2])  # as hygiene leaves it
    known, _ = targets([without_great], ratings, RatingOptions("win_rate"), "r")
    assert known == {A: 0.75, B: 0.25}  # two responses are best and worst: (1 + 1/2) / 2 and (0 + 1/2) / 2


# ---- the recipe ----------------------------------------------------------------------------------------------------


def test_only_what_acts_is_in_the_recipe() -> None:
    assert RatingOptions("score").recipe() == {"as": "score", "normalize": "zscore"}
    assert RatingOptions("thumbs", threshold=1.0).recipe() == {"as": "thumbs", "threshold": 1.0}
    assert RatingOptions("win_rate", temperature=2.0).recipe() == {"as": "win_rate", "temperature": 2.0}
