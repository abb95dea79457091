"""Which responses meet: by id, whatever the order of groups, shards and scores."""

import random
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sail.core.records import DatasetVerdict, PreferencePair, SampleGroup
from sail.core.seeds import uniform
from sail.core.store import Store
from sail.labeling import PAIRINGS, ScoreEvidence
from sail.labeling.candidates import Candidate, pair_id
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairings import PairingFacts
from sail.labeling.pairs import pair_responses

from .doubles import ADJECTIVES, make_group
from .stored import verdict_of, write_groups, write_scores


def pair_up(name: str, group: SampleGroup, facts: PairingFacts) -> list[Candidate]:
    return PAIRINGS[name](group.prompt, group.samples, facts)


def places(candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
    """The positions of A and B that the ids of make_group end in."""
    return [(int(pair.a.response_id[-1]), int(pair.b.response_id[-1])) for pair in candidates]


def facts_of(group: SampleGroup, *scores: float, seed: int = 0) -> PairingFacts:
    ids = [sample.response_id for sample in group.samples]
    return PairingFacts(seed, dict(zip(ids, scores, strict=True)) if scores else None)


GROUP = make_group("film", *ADJECTIVES[:4])


def test_all_pairs_are_every_pair_once_in_order() -> None:
    assert places(pair_up("all", GROUP, facts_of(GROUP))) == list(combinations(range(4), 2))
    two = make_group("film", "good", "bad")
    assert places(pair_up("all", two, facts_of(two))) == [(0, 1)]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((1.0, 3.0, 0.0, 2.0), (1, 2)),
        ((0.0, 1.0, 2.0, 3.0), (0, 3)),
        ((5.0, 1.0, 5.0, 1.0), (0, 3)),  # ties at both ends: the first best, the last worst
        ((1.0, 5.0, 1.0, 5.0), (1, 2)),
        ((2.0, 2.0, 2.0, 2.0), (0, 3)),  # nobody is better: still two different responses
    ],
)
def test_best_worst_picks_the_ends(scores: tuple[float, ...], expected: tuple[int, int]) -> None:
    assert places(pair_up("best_worst", GROUP, facts_of(GROUP, *scores))) == [expected]


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=6))
def test_best_worst_has_the_maximum_and_the_minimum(scores: list[int]) -> None:
    group = make_group("film", *ADJECTIVES[: len(scores)])
    facts = facts_of(group, *map(float, scores))
    (pair,) = pair_up("best_worst", group, facts)
    assert facts.scores is not None
    ends = {facts.scores[pair.a.response_id], facts.scores[pair.b.response_id]}
    assert ends == {float(max(scores)), float(min(scores))}
    assert pair.a.response_id != pair.b.response_id


def test_best_worst_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="best_worst needs a score"):
        pair_up("best_worst", GROUP, facts_of(GROUP))


def test_one_response_makes_no_pair() -> None:
    alone = make_group("film", "good")
    for name in ("all", "best_worst", "random"):
        assert pair_up(name, alone, facts_of(alone, 1.0)) == []


def test_a_random_pair_ignores_scores_and_order_and_reaches_every_pair() -> None:
    reached = set()
    for seed in range(60):
        (pair,) = pair_up("random", GROUP, facts_of(GROUP, seed=seed))
        assert [pair] == pair_up("random", GROUP, facts_of(GROUP, 9.0, 0.0, 3.0, 4.0, seed=seed))
        turned = SampleGroup(GROUP.prompt, GROUP.samples[::-1])
        (other,) = pair_up("random", turned, facts_of(turned, seed=seed))
        assert other.pair_id == pair.pair_id
        reached.add(places([pair])[0])
    assert reached == set(combinations(range(4), 2))


def test_a_dataset_pair_puts_the_chosen_response_on_either_side() -> None:
    sides = []
    for number in range(200):
        group = make_group(f"film {number}", "good", "bad", stop_kind="dataset")
        facts = PairingFacts(3, verdicts={group.prompt.prompt_id: [verdict_of(group)]})
        (pair,) = pair_up("verdicts", group, facts)
        sides.append(pair.a.response_id == verdict_of(group).chosen_id)
    assert 70 < sum(sides) < 130


def test_a_pair_judged_twice_becomes_two_pairs_with_their_own_ids() -> None:
    group = make_group("film", "good", "bad", stop_kind="dataset")
    first = verdict_of(group)
    opposite = DatasetVerdict(first.prompt_id, first.rejected_id, first.chosen_id, None, None)
    pairs = pair_up("verdicts", group, PairingFacts(0, verdicts={first.prompt_id: [first, opposite]}))
    assert len({pair.pair_id for pair in pairs}) == 2
    assert [pair.verdict for pair in pairs] == [first, opposite]


def test_a_verdict_on_a_dropped_response_makes_no_pair() -> None:
    group = make_group("film", "good", "bad", stop_kind="dataset")
    facts = PairingFacts(0, verdicts={group.prompt.prompt_id: [verdict_of(group)]})
    assert PAIRINGS["verdicts"](group.prompt, group.samples[:1], facts) == []


def test_the_id_of_a_pair_hangs_on_its_ids_and_not_on_the_sides() -> None:
    assert pair_id("p", ("x", "y")) == pair_id("p", ("y", "x"))
    assert len({pair_id("p", ("x", "y")), pair_id("q", ("x", "y")), pair_id("p", ("x", "y"), repeat=1)}) == 3


# --- the property that the public SAIL code breaks: prompts shuffled, responses zipped to the unshuffled list


def score_of(response_id: str) -> float:
    return uniform("score", response_id)


def check_pairs_are_joined_by_id(pairs: Sequence[PreferencePair], groups: Sequence[SampleGroup]) -> None:
    """Every pair's prompt, texts and scores are those of its ids."""
    truth = {sample.response_id: (group.prompt, sample) for group in groups for sample in group.samples}
    for pair in pairs:
        for response_id, score, length in (
            (pair.a_id, pair.score_a, pair.length_a),
            (pair.b_id, pair.score_b, pair.length_b),
        ):
            prompt, sample = truth[response_id]
            assert prompt.prompt_id == pair.prompt_id
            assert prompt.messages == pair.prompt
            assert score == score_of(response_id)
            assert length == len(sample.token_ids)


def pairs_by_position(
    store: Store, prompts: Sequence[SampleGroup], responses: Sequence[SampleGroup]
) -> list[PreferencePair]:
    """The mistake: prompts in one order, responses in another, joined by their place in two lists."""
    zipped = [SampleGroup(left.prompt, right.samples) for left, right in zip(prompts, responses, strict=True)]
    return run_stage(store, zipped, prompts, "all", shard_size=None)


def run_stage(
    store: Store,
    groups: Sequence[SampleGroup],
    scored: Sequence[SampleGroup],
    pairing: str,
    shard_size: int | None,
) -> list[PreferencePair]:
    responses = write_groups(store, groups, shard_size=shard_size)
    scores = {sample.response_id: score_of(sample.response_id) for group in scored for sample in group.samples}
    evidence = ScoreEvidence(write_scores(store, scored, scores), "rm", "digest")
    return pair_responses(store, responses, evidence, PairingOptions(pairing, "soft", seed=5)).read(
        PreferencePair, "pairs"
    )


def make_groups(count: int, num_samples: int) -> list[SampleGroup]:
    return [make_group(f"{number} film", *ADJECTIVES[:num_samples]) for number in range(count)]


@settings(max_examples=25)
@given(
    count=st.integers(2, 6),
    num_samples=st.integers(2, 4),
    shard_size=st.one_of(st.none(), st.integers(1, 4)),
    shuffle=st.randoms(use_true_random=False),
    pairing=st.sampled_from(["all", "best_worst", "random"]),
)
def test_pairs_are_joined_by_id_through_every_shuffle_and_shard(
    count: int, num_samples: int, shard_size: int | None, shuffle: random.Random, pairing: str
) -> None:
    groups = make_groups(count, num_samples)
    shuffled, scored = shuffle.sample(groups, count), shuffle.sample(groups, count)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        pairs = run_stage(store, shuffled, scored, pairing, shard_size)
        straight = run_stage(store, groups, groups, pairing, None)
    check_pairs_are_joined_by_id(pairs, groups)
    assert {pair.pair_id: pair for pair in pairs} == {pair.pair_id: pair for pair in straight}
    assert len(pairs) == count * (num_samples * (num_samples - 1) // 2 if pairing == "all" else 1)
    order = [group.prompt.prompt_id for group in shuffled]
    assert [order.index(pair.prompt_id) for pair in pairs] == sorted(order.index(pair.prompt_id) for pair in pairs)


def test_joining_by_position_is_caught(store: Store) -> None:
    groups = make_groups(5, 2)
    check_pairs_are_joined_by_id(pairs_by_position(store, groups, groups), groups)  # nothing moved: it looks right
    with pytest.raises(AssertionError):
        check_pairs_are_joined_by_id(pairs_by_position(store, groups, [*groups[1:], groups[0]]), groups)
