"""Steps between labels and update: pure functions, counted, written into the pairs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail.core.labeler_settings import Cap, Deduplicate, Disagreement, DropNearTies, LengthMatched, Smooth, Temper
from sail.core.metrics import METRICS
from sail.core.store import Store
from sail.labeling.candidates import Candidate, pair_id
from sail.labeling.labels import Label, Opinion, winner_of
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses
from sail.labeling.regulation import REGULATIONS, LabelledPair, changes_labels, drops_pairs, regulate

from .doubles import make_group
from .stored import read_pairs, scored, write_groups

STEPS = [
    Temper(temperature=2.0), Smooth(epsilon=0.1), Cap(confidence=0.9), DropNearTies(margin=0.2),
    LengthMatched(ratio=1.5), Disagreement(other="gold"), Disagreement(other="gold", do="soften"), Deduplicate(),
]  # fmt: skip


def labelled(p_a: float, a: str = "good", b: str = "bad", prompt: str = "film") -> LabelledPair:
    group = make_group(prompt, a, b)
    name = pair_id(group.prompt.prompt_id, [sample.response_id for sample in group.samples])
    opinion = Opinion(winner_of(p_a, 0.5), p_a, None, None)
    return LabelledPair(Candidate(name, group.prompt, *group.samples), opinion, Label(opinion.winner, p_a), 0.25)


def after(step, *pairs: LabelledPair, others=None) -> tuple[list[float], dict[str, int]]:
    rows, counts = regulate(pairs, [step], others or {})
    return [row.label.p_a for row in rows], dict(counts)


def test_tempering_divides_the_log_odds() -> None:
    table = [labelled(p, prompt=f"film {p}") for p in (0.9, 0.5, 0.2, 1.0, 0.0)]
    found, counts = after(Temper(temperature=2.0), *table)
    odds = [math.log(p / (1 - p)) for p in found[:3]]
    assert odds == pytest.approx([math.log(9) / 2, 0.0, -math.log(4) / 2], abs=1e-12)
    assert (found[3:], counts) == ([1.0, 0.0], {"labels/changed_temper": 2})


def test_smoothing_is_the_label_of_conservative_dpo() -> None:
    assert after(Smooth(epsilon=0.1), labelled(1.0)) == ([0.9], {"labels/changed_smooth": 1})
    assert after(Smooth(epsilon=0.1), labelled(0.0))[0] == [pytest.approx(0.1)]
    assert after(Smooth(epsilon=0.1), labelled(0.7))[0] == [pytest.approx(0.9 * 0.7 + 0.1 * 0.3)]


def test_a_cap_cuts_both_ends_and_nothing_else() -> None:
    table = [labelled(p, prompt=f"film {p}") for p in (0.99, 0.01, 0.6)]
    assert after(Cap(confidence=0.95), *table) == ([0.95, pytest.approx(0.05), 0.6], {"labels/changed_cap": 2})


def test_near_ties_go() -> None:
    table = [labelled(p, prompt=f"film {p}") for p in (0.5, 0.59, 0.65, 0.35, 0.45)]
    assert after(DropNearTies(margin=0.125), *table) == ([0.65, 0.35], {"labels/dropped_near_ties": 3})


def test_lengths_far_apart_go() -> None:
    """Tokens with EOS: 3 against 2, 4 against 2."""
    table = [labelled(0.7, "good .", "bad"), labelled(0.8, "bad", "good and good", "book")]
    assert after(LengthMatched(ratio=1.5), *table) == ([0.7], {"labels/dropped_length": 1})


def test_another_labeler_may_veto_or_soften() -> None:
    table = [labelled(0.9, prompt=f"film {n}") for n in range(5)]
    says = [Opinion("A", 0.6, None, None), Opinion("B", 0.2, None, None), Opinion("B", None, None, None),
            Opinion("tie", 0.5, None, None), Opinion("error", None, None, None)]  # fmt: skip
    others = {"gold": {row.candidate.pair_id: said for row, said in zip(table, says, strict=True)}}
    dropped = after(Disagreement(other="gold"), *table, others=others)
    assert dropped == ([0.9] * 3, {"labels/dropped_disagreement": 2, "labels/changed_disagreement": 0})
    softened = after(Disagreement(other="gold", do="soften"), *table, others=others)
    assert softened[0] == pytest.approx([0.9, 0.55, 0.45, 0.9, 0.9])
    assert softened[1] == {"labels/dropped_disagreement": 0, "labels/changed_disagreement": 2}


def test_the_same_words_are_kept_once_whichever_side_they_stand_on() -> None:
    table = [labelled(0.7, "Good .", "bad"), labelled(0.8, "bad", "good"), labelled(0.9, "good", "dull"),
             labelled(0.6, "good", "bad", "book")]  # fmt: skip
    assert len({row.candidate.pair_id for row in table}) == 2  # ids hang on the prompt here
    renamed = [LabelledPair(Candidate(f"pair-{n}", row.candidate.prompt, row.candidate.a, row.candidate.b),
                            row.opinion, row.label, row.draw) for n, row in enumerate(table)]  # fmt: skip
    assert after(Deduplicate(), *renamed) == ([0.7, 0.9, 0.6], {"labels/dropped_duplicates": 1})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_every_step_declares_what_it_does_and_its_counts_add_up(ps: list[float]) -> None:
    table = [labelled(p, prompt=f"film {n}") for n, p in enumerate(ps)]
    others = {"gold": {row.candidate.pair_id: Opinion("B", 0.25, None, None) for row in table}}
    for step in STEPS:
        rows, counts = regulate(table, [step], others)
        changed = {row.candidate.pair_id for row in rows} & {
            row.candidate.pair_id for row, old in zip(table, table, strict=True)
            for new in rows if new.candidate.pair_id == old.candidate.pair_id and new.label.p_a != old.label.p_a
        }  # fmt: skip
        dropped = len(table) - len(rows)
        row_of = REGULATIONS[step.step]
        assert counts.get(row_of.dropped or "", 0) == dropped
        assert counts.get(row_of.changed or "", 0) == len(changed)
        assert drops_pairs(step) or not dropped
        assert changes_labels(step) or not changed
        assert counts.keys() <= METRICS.keys()
        for row in rows:
            assert 0 <= row.label.p_a <= 1 and row.label.verdict == winner_of(row.label.p_a, 0.5)
            assert len(row.steps) == (row.candidate.pair_id in changed)


def test_steps_run_in_their_order_and_the_pair_tells_its_story(store: Store) -> None:
    groups = [make_group("film", "good", "bad"), make_group("book", "good", "bad")]
    responses = write_groups(store, groups)
    evidence = scored(store, groups, 3.0, 0.0, 0.1, 0.0)
    steps = (DropNearTies(margin=0.1), Temper(temperature=3.0), Cap(confidence=0.7))
    regulated = PairingOptions("all", "soft", 7, regulation=steps)
    artifact = pair_responses(store, responses, evidence, regulated)
    (pair,) = read_pairs(artifact)
    p = 1 / (1 + math.exp(-1.0))
    assert pair.p_a == 0.7
    assert pair.steps == (f"temper temperature=3.0: 0.952574 -> {p:.6g}", f"cap confidence=0.7: {p:.6g} -> 0.7")
    result = artifact.result()
    assert (result["labels/pairs"], result["labels/dropped_near_ties"]) == (1, 1)
    assert (result["labels/changed_temper"], result["labels/changed_cap"]) == (1, 1)
    plain = PairingOptions("all", "soft", 7)
    other = PairingOptions("all", "soft", 7, regulation=(steps[0], steps[2], steps[1]))
    keys = {pair_responses(store, responses, evidence, options).key for options in (regulated, plain, other)}
    assert len(keys) == 3


def test_second_opinions_come_from_artifacts_of_their_own(store: Store) -> None:
    groups = [make_group("film", "good", "bad"), make_group("book", "good", "bad")]
    responses = write_groups(store, groups)
    evidence, gold = scored(store, groups, 1.0, 0.0, 1.0, 0.0), scored(store, groups, 1.0, 0.0, 0.0, 1.0)
    options = PairingOptions("all", "hard", 7, regulation=(Disagreement(other="gold"),))
    artifact = pair_responses(store, responses, evidence, options, None, {"gold": gold})
    assert [pair.prompt[0]["content"] for pair in read_pairs(artifact)] == ["film"]
    agreeing = pair_responses(store, responses, evidence, options, None, {"gold": evidence})
    assert agreeing.key != artifact.key and agreeing.result()["labels/pairs"] == 2
