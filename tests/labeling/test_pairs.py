"""The pairs stage: labels, hygiene, keys and the table other trainers read."""

import math
from pathlib import Path

import datasets
import pytest

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import PreferencePair
from sail.core.seeds import uniform
from sail.core.store import Store
from sail.labeling import DatasetEvidence, ScoreEvidence
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses

from .doubles import make_group, make_prompt
from .stored import pairs_of, scored, write_data, write_groups

HARD = PairingOptions("all", "hard", seed=7)
ROWS = [("film", "the film was good .", "bad"), ("book", "great .", "the book was dull .")]


def pair_two(store: Store, score_a: float, score_b: float, options: PairingOptions) -> PreferencePair:
    groups = [make_group("film", "good .", "bad")]
    evidence = scored(store, groups, score_a, score_b, temperature=2.0)
    (pair,) = pairs_of(store, write_groups(store, groups), evidence, options)
    return pair


def test_a_pair_carries_its_provenance(store: Store) -> None:
    pair = pair_two(store, 1.0, 4.0, PairingOptions("all", "soft", seed=7, round_index=3))
    prompt = make_prompt("film")
    assert (pair.prompt_id, pair.a_id, pair.b_id) == (
        prompt.prompt_id,
        f"{prompt.prompt_id}-0",
        f"{prompt.prompt_id}-1",
    )
    assert (pair.source, pair.mode, pair.labeler, pair.labeler_digest) == ("others", "soft", "rm", "d1g357")
    assert (pair.score_a, pair.score_b, pair.verdict, pair.round_index) == (1.0, 4.0, "B", 3)
    assert pair.p_a == pytest.approx(1 / (1 + math.exp(1.5)), abs=1e-15)
    assert pair.draw == uniform(7, "draw", pair.pair_id)
    assert (pair.length_a, pair.length_b, pair.truncated_a, pair.truncated_b) == (3, 2, False, False)
    assert pair.chosen == ({"role": "assistant", "content": "bad"},)
    assert pair.rejected == ({"role": "assistant", "content": "good ."},)
    assert pair.prompt == ({"role": "user", "content": "film"},)


def test_draws_hang_on_the_pair_and_not_on_the_order(store: Store) -> None:
    groups = [make_group(f"{number} film", "good", "bad") for number in range(6)]
    evidence = scored(store, groups, *[1.0, 0.0] * 6)
    options, other_seed = (PairingOptions("all", "sampled", seed) for seed in (7, 8))
    draws = [
        {pair.pair_id: (pair.draw, pair.verdict) for pair in pairs_of(store, responses, evidence, options)}
        for responses in (write_groups(store, groups), write_groups(store, groups[::-1], shard_size=2))
    ]
    assert draws[0] == draws[1]
    other = pairs_of(store, write_groups(store, groups), evidence, other_seed)
    assert {pair.draw for pair in other}.isdisjoint(draw for draw, _ in draws[0].values())


def test_sampled_labels_come_up_as_often_as_p(store: Store) -> None:
    groups = [make_group(f"{number} film", "good", "bad") for number in range(400)]
    evidence = scored(store, groups, *[math.log(3.0), 0.0] * 400)  # p = 3/4
    options = PairingOptions("all", "sampled", seed=1)
    pairs = pairs_of(store, write_groups(store, groups), evidence, options)
    assert {pair.p_a for pair in pairs} == {0.0, 1.0}
    assert sum(pair.p_a for pair in pairs) / 400 == pytest.approx(0.75, abs=0.07)


def test_pairs_are_shared_by_runs_that_differ_in_nothing_that_matters(store: Store) -> None:
    groups = [make_group("film", "good", "bad")]
    responses = write_groups(store, groups)
    scores = scored(store, groups, 1.0, 0.0).scores

    def key(options: PairingOptions, temperature: float = 1.0) -> str:
        return pair_responses(store, responses, ScoreEvidence(scores, "rm", "d", temperature), options).key

    soft = PairingOptions("all", "soft", 7, sail_coef=0.1)
    assert key(soft) == key(PairingOptions("all", "soft", 7, sail_coef=0.3, where="routes.other"))
    assert key(soft) != key(soft, temperature=2.0)
    assert key(HARD) == key(HARD, temperature=2.0)
    assert (
        len({key(HARD), key(soft), key(PairingOptions("all", "hard", 8)), key(PairingOptions("random", "hard", 7))})
        == 4
    )


def test_labels_none_is_refused_before_anything_is_read(store: Store) -> None:
    with pytest.raises(UserError, match=r"routes\.online: labels: none"):
        pair_responses(
            store,
            Artifact("samples", "k", Path("/nowhere")),
            None,
            PairingOptions("all", "hard", 7, where="routes.online"),
        )


def test_a_missing_score_is_no_silent_gap(store: Store) -> None:
    groups = [make_group("film", "good", "bad"), make_group("book", "good", "bad")]
    evidence = scored(store, groups[:1], 1.0, 0.0)
    with pytest.raises(ValueError, match="no score for 2 responses"):
        pair_responses(store, write_groups(store, groups), evidence, HARD)


# --- what others read


def test_the_table_loads_with_datasets_as_a_conversational_preference_set(store: Store, tmp_path: Path) -> None:
    data = write_data(store, ROWS)
    artifact = pair_responses(store, data, DatasetEvidence(data, "prefs"), PairingOptions("verdicts", "hard", 7))
    table = datasets.load_dataset(
        "parquet", data_files=str(artifact.path / "pairs.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table[0]["prompt"] == [{"role": "user", "content": "film"}]
    assert table[0]["chosen"] == [{"role": "assistant", "content": "the film was good ."}]
    assert table[0]["rejected"] == [{"role": "assistant", "content": "bad"}]
