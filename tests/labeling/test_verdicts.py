"""Labelers of pairs that are no judges: recorded verdicts, people, noise; and what a verdict becomes."""

import csv
import gzip
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from sail.core.artifacts import Artifact
from sail.core.errors import UserError, WaitingForPeopleError
from sail.core.labeler_settings import HumanLabeler, ReplayLabeler
from sail.core.records import SampleGroup, ScoredGroup
from sail.core.seeds import uniform
from sail.core.store import Store
from sail.labeling.evidence import VerdictEvidence
from sail.labeling.label_figures import agreement
from sail.labeling.labelers.human import human_labeler
from sail.labeling.labelers.noise import NoiseEvidence, NoisyRatings
from sail.labeling.labelers.replay import replay_labeler
from sail.labeling.labels import Opinion, label
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses
from sail.labeling.ratings import Noise, RatingOptions, ScoredRatings, targets
from sail.labeling.rows import RowOptions, response_rows
from sail.labeling.verdicts import Compared, compare_responses
from sail.testbed.judge import Json, chat_reply, tagged

from .doubles import make_group
from .endpoints import compared, judge_settings, read_verdicts, serving
from .stored import pairs_of, scored, write_data, write_groups

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-rlhf-test" / "helpful-base.test.jsonl.gz"
GROUPS = [make_group(f"film {n}", "good", "bad", "dull") for n in range(4)]


def replayed(
    store: Store, responses: Artifact, path: Path, rows: Sequence[dict], which: Compared = "all", **settings: str
) -> Artifact:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return compare_responses(
        store, responses, replay_labeler("people", ReplayLabeler(path=str(path), **settings)), which
    )


def recorded(groups: Sequence[SampleGroup], verdicts: Sequence[str]) -> list[dict]:
    """One verdict for each two responses, in order; every second line has its sides changed."""
    pairs = [(group, *two) for group in groups for two in combinations(group.samples, 2)]
    rows = []
    for number, ((group, a, b), verdict) in enumerate(zip(pairs, verdicts, strict=True)):
        sides = (a.text, b.text) if number % 2 == 0 else (b.text, a.text)
        said = verdict if number % 2 == 0 else {"A": "B", "B": "A"}.get(verdict, verdict)
        rows.append({"prompt": group.prompt.messages[0]["content"], "a": sides[0], "b": sides[1], "verdict": said})
    return rows


# --- recorded verdicts

SAID = ["A", "B", "tie", "A", "abstain", "A", "B", "error", "A", "tie", "A", "A"]


def test_recorded_verdicts_are_found_by_their_texts_whichever_side_is_a(store: Store, tmp_path: Path) -> None:
    responses = write_groups(store, GROUPS)
    artifact = replayed(store, responses, tmp_path / "said.jsonl", recorded(GROUPS, SAID))
    assert [verdict.verdict for verdict in read_verdicts(artifact)] == SAID
    result = artifact.result()
    assert (result["judge/tie_share"], result["judge/abstain_share"], result["judge/error_share"]) == (
        2 / 12,
        *[1 / 12] * 2,
    )


def test_two_recorded_judges_agree_flip_and_tie_as_was_written_down(store: Store, tmp_path: Path) -> None:
    """Of ten pairs that both decided 6 agree (4 A, 1 B, 1 tie), 2 are flipped."""
    other = ["A", "B", "A", "A", "A", "B", "A", "A", "A", "tie", "tie", "A"]
    responses = write_groups(store, GROUPS)
    one, two = (
        [v.verdict for v in read_verdicts(replayed(store, responses, tmp_path / f"{n}.jsonl", recorded(GROUPS, said)))]
        for n, said in enumerate((SAID, other))
    )
    found = agreement(one, two)
    assert (found.num_pairs, found.raw, found.flips) == (10, 0.6, 0.2)
    expected = (6 * 6 + 2 * 2 + 2 * 2) / 100  # one: 6 A, 2 B, 2 ties; two: 6 A, 2 B, 2 ties
    assert found.kappa == pytest.approx((0.6 - expected) / (1 - expected))


def test_several_annotators_are_averaged_and_one_can_be_picked(store: Store, tmp_path: Path) -> None:
    groups = [make_group("film", "good", "bad")]
    responses = write_groups(store, groups)
    line = {"prompt": "film", "a": "good", "b": "bad"}
    rows = [
        line | {"verdict": "A", "annotator": "ann"}, line | {"verdict": "A", "annotator": "bob"},
        line | {"verdict": "abstain", "annotator": "cyd"}, {"prompt": "film", "a": "bad", "b": "good", "p": 0.75},
    ]  # fmt: skip
    path = tmp_path / "said.jsonl"
    (everyone,) = read_verdicts(replayed(store, responses, path, rows))
    assert (everyone.verdict, everyone.p_a) == ("A", 0.75)  # the mean of 1, 1 and .25
    (alone,) = read_verdicts(replayed(store, responses, path, rows, annotator="cyd"))
    assert (alone.verdict, alone.p_a) == ("abstain", None)
    with pytest.raises(UserError, match="holds no verdicts by 'dan'"):
        replayed(store, responses, path, rows, annotator="dan")


def test_a_recorded_text_may_hold_any_separator(store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": "film", "a": "good\u2028\u2029\u0085.", "b": "bad", "verdict": "A"}]
    (tmp_path / "said.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False))
    responses = write_groups(store, [make_group("film", rows[0]["a"], "bad")])
    people = replay_labeler("people", ReplayLabeler(path=str(tmp_path / "said.jsonl")))
    assert [v.verdict for v in read_verdicts(compare_responses(store, responses, people, "all"))] == ["A"]


def test_what_was_never_recorded_is_an_abstention(store: Store, tmp_path: Path) -> None:
    artifact = replayed(store, write_groups(store, GROUPS), tmp_path / "said.jsonl", recorded(GROUPS[:1], SAID[:3]))
    assert [verdict.verdict for verdict in read_verdicts(artifact)] == [*SAID[:3], *["abstain"] * 9]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "x", "a": "y", "b": "z", "verdict": "C"}, "line 1: verdict is 'C'"),
        ({"prompt": "x", "a": "y", "b": "z", "p": 2}, "line 1: p is 2"),
        ({"prompt": "x", "a": "y", "verdict": "A"}, "line 1: expected prompt, a, b"),
    ],
)
def test_a_line_of_another_form_is_named(store: Store, tmp_path: Path, row: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        replayed(store, write_groups(store, GROUPS), tmp_path / "said.jsonl", [row])


# --- real people, where their data is at hand


def longer(body: Json) -> tuple[int, bytes]:
    """A judge who likes the longer response."""
    question = body["messages"][0]["content"]
    a, b = (len(tagged(question, f"response_{side}")) for side in "ab")
    return chat_reply(json.dumps({"reason": "length", "verdict": "A" if a > b else "B" if b > a else "tie"}))


@pytest.mark.skipif(not HH.exists(), reason="needs the human preference pairs of Anthropic HH")
def test_a_judge_of_length_agrees_with_recorded_people_as_often_as_they_chose_the_longer(
    store: Store, tmp_path: Path
) -> None:
    pairs = []
    with gzip.open(HH, "rt") as file:
        for line in (json.loads(line) for line in list(file)[:300]):
            prompts, answers = zip(
                *(line[side].rsplit("\n\nAssistant:", 1) for side in ("chosen", "rejected")), strict=True
            )
            if prompts[0] == prompts[1] and answers[0] != answers[1]:
                pairs.append((prompts[0], answers[0].strip(), answers[1].strip()))
    pairs = list({prompt: pair for pair in pairs for prompt in pair[:1]}.values())
    assert len(pairs) > 250
    data = write_data(store, pairs)
    rows = [{"prompt": prompt, "a": chosen, "b": rejected, "verdict": "A"} for prompt, chosen, rejected in pairs]
    people = read_verdicts(replayed(store, data, tmp_path / "people.jsonl", rows, "verdicts"))
    with serving(longer) as server:
        judge = read_verdicts(compared(store, data, judge_settings(server), "verdicts"))
    gaps = [len(chosen) - len(rejected) for _, chosen, rejected in pairs]
    found = agreement([v.verdict for v in people], [v.verdict for v in judge])
    assert (found.num_pairs, found.raw) == (len(pairs), sum(gap > 0 for gap in gaps) / len(gaps))
    assert found.flips == sum(gap < 0 for gap in gaps) / len(gaps)
    assert 0.5 < sum(gap > 0 for gap in gaps) / len(gaps) < 0.7  # people chose the longer one in .60 of helpful-base


# --- people


def asked(store: Store, responses: Artifact, folder: Path, form: str = "csv") -> Artifact:
    settings = HumanLabeler(folder=str(folder), format=form)  # type: ignore[arg-type]
    return compare_responses(store, responses, human_labeler("ann", settings), "all")


def filled(path: Path, answer: dict[str, str]) -> None:
    """Each row gets what `answer` says of its better response, in the words of someone who is in a hurry."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["verdict"] = " a" if row["response_a"] == answer[row["response_b"]] else "B"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_run_that_waits_for_people_says_what_for_and_goes_on_afterwards(store: Store, tmp_path: Path) -> None:
    groups = [make_group(f'film, "{n}"\nin rome', f"good {n}", f"bad\n{n}") for n in range(8)]
    responses = write_groups(store, groups)
    with pytest.raises(WaitingForPeopleError, match=r"8 of 8 pairs in .*ann-\w+\.csv wait .* run the same command"):
        asked(store, responses, tmp_path)
    (sheet,) = tmp_path.glob("ann-*.csv")
    before = sheet.read_bytes()
    with pytest.raises(WaitingForPeopleError):
        asked(store, responses, tmp_path)
    assert sheet.read_bytes() == before
    filled(sheet, {f"bad\n{n}": f"good {n}" for n in range(8)} | {f"good {n}": "" for n in range(8)})
    verdicts = read_verdicts(asked(store, responses, tmp_path))
    assert [(v.verdict, v.p_a) for v in verdicts] == [("A", 1.0)] * 8
    with sheet.open(newline="", encoding="utf-8-sig") as file:
        assert {row["verdict"] for row in csv.DictReader(file)} == {" a", "B"}  # either side shows the better one
    sheet.unlink()
    asked(store, responses, tmp_path)  # committed: nobody is asked again
    assert not sheet.exists()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_sheet_with_any_text_is_read_back(form: str, store: Store, tmp_path: Path) -> None:
    groups = [make_group("film", "good\u2028\u2029\u0085.", "bad " * 40_000)]
    responses = write_groups(store, groups)
    for _ in range(2):  # once to write the sheet, once to find no verdict in it
        with pytest.raises(WaitingForPeopleError, match="1 of 1 pairs"):
            asked(store, responses, tmp_path, form)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: [row | {"verdict": "left"} for row in rows], "verdict 'left' of row"),
        (lambda rows: rows[:-1], "holds 2 rows, 2 of the 3 pairs"),
        (lambda rows: [{"verdict": "A"}], "rows without id"),
    ],
)
def test_a_sheet_that_was_filled_in_wrongly_is_named(store: Store, tmp_path: Path, change, told: str) -> None:
    responses = write_groups(store, GROUPS[:1])
    with pytest.raises(WaitingForPeopleError):
        asked(store, responses, tmp_path, "jsonl")
    (sheet,) = tmp_path.glob("ann-*.jsonl")
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    sheet.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    with pytest.raises(UserError, match=told):
        asked(store, responses, tmp_path, "jsonl")


# --- noise


def test_noise_turns_the_known_share_of_labels_round_and_the_same_ones_every_time(store: Store) -> None:
    groups = [make_group(f"{n} film", "good", "bad") for n in range(200)]
    responses, options = write_groups(store, groups), PairingOptions("all", "soft", 7)
    clean = scored(store, groups, *[1.0, 0.0] * 200)
    before = pairs_of(store, responses, clean, options)
    after = pairs_of(store, responses, NoiseEvidence(clean, "noisy", 0.2, 5), options)
    turned = [one.pair_id for one, other in zip(before, after, strict=True) if one.p_a != other.p_a]
    assert turned == [one.pair_id for one in before if uniform(5, "noise", one.pair_id) < 0.2]
    assert 20 < len(turned) < 60
    for one, other in zip(before, after, strict=True):
        assert other.p_a == (1 - one.p_a if one.pair_id in turned else one.p_a)
        assert (other.verdict, other.score_a) == ("B" if one.pair_id in turned else "A", one.score_a)
    other_seed = pairs_of(store, responses, NoiseEvidence(clean, "noisy", 0.2, 6), options)
    assert [pair.p_a for pair in other_seed] != [pair.p_a for pair in after]


def test_noise_turns_the_known_share_of_thumbs_round_by_response(store: Store) -> None:
    groups = [make_group(f"{n} film", "good", "bad") for n in range(100)]
    responses, clean = (
        write_groups(store, groups),
        ScoredRatings(scored(store, groups, *[1.0, 0.0] * 100, temperature=4)),
    )

    def thumbs(rate: float, seed: int = 5) -> dict[str, float]:
        ratings = NoisyRatings(clean, "noisy", Noise(rate, seed)).read(responses)
        assert (ratings.labeler, ratings.temperature) == ("noisy", 4.0)
        return targets(groups, ratings, RatingOptions("thumbs"), "routes.kto")[0]

    before, after = thumbs(0.0), thumbs(0.2)
    assert before == targets(groups, clean.read(responses), RatingOptions("thumbs"), "routes.kto")[0]
    turned = [name for name in before if before[name] != after[name]]
    assert turned == [name for name in before if uniform(5, "noise", name) < 0.2] and 20 < len(turned) < 60
    assert thumbs(0.2, seed=6) != after
    noises = [Noise(0.2, 5), Noise(0.3, 5), Noise(0.2, 6)]
    options = RowOptions(RatingOptions("thumbs"))
    keys = {response_rows(store, responses, NoisyRatings(clean, "noisy", noise), options).key for noise in noises}
    assert len(keys) == 3


# --- what a verdict becomes


def test_win_rates_are_the_scores_that_best_and_worst_go_by(store: Store, tmp_path: Path) -> None:
    """good beats bad, dull beats good half the time, bad and dull were never compared."""
    groups = [make_group("film", "good", "bad", "dull")]
    responses = write_groups(store, groups)
    rows = recorded(groups, ["A", "tie", "abstain"])
    artifact = replayed(store, responses, tmp_path / "said.jsonl", rows)
    assert [row.scores for row in artifact.read(ScoredGroup, "scores")] == [(0.75, 0.0, 0.5)]
    evidence = VerdictEvidence(artifact, "people", "d1g357", True)
    (pair,) = pairs_of(store, responses, evidence, PairingOptions("best_worst", "hard", 7))
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"], pair.p_a) == ("good", "bad", 1.0)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.8])
def test_a_soft_label_is_the_mean_over_sampled_labels(store: Store, tmp_path: Path, p: float) -> None:
    """Over draws spread evenly, (k + 1/2) / 1000, exactly: p is a multiple of 1 / 1000."""
    groups = [make_group("film", "good", "bad")]
    responses = write_groups(store, groups)
    rows = [{"prompt": "film", "a": "good", "b": "bad", "p": p}]
    evidence = VerdictEvidence(replayed(store, responses, tmp_path / "said.jsonl", rows), "people", "d", True)
    (soft,) = pairs_of(store, responses, evidence, PairingOptions("all", "soft", 7))
    for seed in range(6):
        (drawn,) = pairs_of(store, responses, evidence, PairingOptions("all", "sampled", seed))
        assert drawn.p_a == float(drawn.draw < p)
    opinion = Opinion(soft.verdict, soft.p_a, None, None)
    sampled = [label(opinion, "sampled", "others", (k + 0.5) / 1000).p_a for k in range(1000)]
    assert soft.p_a == p == sum(sampled) / 1000


def test_a_dataset_pair_keeps_its_verdict_whichever_side_a_route_shows_it_on(store: Store, tmp_path: Path) -> None:
    data = write_data(store, [(f"film {n}", "good", "bad") for n in range(6)])
    rows = [{"prompt": f"film {n}", "a": "good", "b": "bad", "p": 0.25} for n in range(6)]
    evidence = VerdictEvidence(replayed(store, data, tmp_path / "said.jsonl", rows, "verdicts"), "people", "d", False)
    for seed in range(3):
        pairs = pairs_of(store, data, evidence, PairingOptions("verdicts", "soft", seed))
        assert {pair.chosen[0]["content"] for pair in pairs} == {"bad"}
        assert {pair.p_a for pair in pairs} == {0.25, 0.75}


def test_a_random_pair_is_the_only_one_that_is_judged(store: Store, tmp_path: Path) -> None:
    responses = write_groups(store, GROUPS)
    settings = ReplayLabeler(path=str(tmp_path / "said.jsonl"))
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recorded(GROUPS, ["A"] * 12)))
    labeler = replay_labeler("people", settings)
    artifact = compare_responses(store, responses, labeler, "random", seed=3)
    verdicts = read_verdicts(artifact)
    assert len(verdicts) == 4
    evidence = VerdictEvidence(artifact, "people", labeler.digest, False)
    pairs = pair_responses(store, responses, evidence, PairingOptions("random", "hard", 3))
    assert pairs.result()["labels/pairs"] == 4
