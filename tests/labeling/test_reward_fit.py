"""Fitting a reward model: it learns, it repeats itself byte for byte, its holdout is honest."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sail.core.artifacts import Artifact, leaf
from sail.core.atomic import file_sha256, tree_files
from sail.core.errors import UserError
from sail.core.metrics import METRICS
from sail.core.records import ScoredGroup
from sail.core.run_settings import RewardFitSettings, RewardModelLabeler
from sail.core.store import Store
from sail.labeling.reward_fit import METRICS_FILE, fit_reward_model
from sail.labeling.reward_model import new_reward_model
from sail.labeling.reward_pairs import RewardPair, batches, split_holdout
from sail.labeling.reward_training import bradley_terry, learning_rate_share, train
from sail.labeling.scores import make_labeler, score_responses

from .doubles import make_group
from .stored import write_data, write_groups

TOPICS = ("film", "book", "meal", "song")
SETTINGS = RewardFitSettings(data="prefs", steps=30, train_batch_size=16, learning_rate=5e-3, holdout=0.25)


def praise_wins(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Pairs whose chosen side praises and whose rejected side does not."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        topic = draw.choice(TOPICS)
        good, bad = draw.choice(("good", "great", "lovely")), draw.choice(("bad", "dull", "awful"))
        rows.append((f"{number} {topic}", f"the {topic} was {good} .", f"the {topic} was {bad} ."))
    return rows


def fit(
    store: Store, data: Artifact, policy_folder: Path, settings: RewardFitSettings = SETTINGS, seed: int = 1
) -> Artifact:
    return fit_reward_model(store, data, leaf(policy_folder), settings, seed)


def test_it_learns_an_obvious_preference_and_serves_as_a_labeler(store: Store, policy_folder: Path) -> None:
    reward = fit(store, write_data(store, praise_wins(120)), policy_folder)
    result = reward.result()
    assert result["accuracy_holdout"] > 0.9
    assert result["pairs"] + result["pairs_holdout"] == 120
    assert result["steps"] == 30
    assert result["nll"] < math.log(2)
    groups = [make_group("film", "the film was great .", "the film was awful .")]
    labeler = make_labeler("rm", RewardModelLabeler(fit=SETTINGS), reward)
    (scored,) = score_responses(store, write_groups(store, groups), labeler).read(ScoredGroup, "scores")
    assert scored.scores[0] > scored.scores[1]
    assert labeler.digest == reward.key


def test_it_logs_a_line_per_step_under_known_names(store: Store, policy_folder: Path) -> None:
    reward = fit(store, write_data(store, praise_wins(40)), policy_folder, SETTINGS.replace(steps=4))
    lines = [json.loads(line) for line in (reward.path / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert METRICS.keys() >= lines[0].keys() - {"step"}
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.1)


def test_a_rerun_is_byte_identical(tmp_path: Path, policy_folder: Path) -> None:
    hashes: list[dict[str, str]] = []
    for name in ("one", "two"):
        store = Store(tmp_path / name)
        torch.manual_seed(len(hashes))  # whatever else the process drew
        reward = fit(store, write_data(store, praise_wins(40)), policy_folder, SETTINGS.replace(steps=5))
        files = tree_files(reward.path)
        hashes.append({str(path.relative_to(reward.path)): file_sha256(path) for path in files})
    assert hashes[0] == hashes[1]
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json", "metrics.jsonl"} <= hashes[0].keys()


def test_fitting_leaves_the_global_random_stream_alone(store: Store, policy_folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(store, write_data(store, praise_wins(20)), policy_folder, SETTINGS.replace(steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_the_key_holds_what_matters(store: Store, policy_folder: Path) -> None:
    data = write_data(store, praise_wins(20))
    base = SETTINGS.replace(steps=1)
    key = fit(store, data, policy_folder, base).key
    same = base.replace(data="other_name", epochs=3.0, max_tokens_per_microbatch=999, init_from="somewhere")
    assert fit(store, data, policy_folder, same).key == key
    assert fit(store, data, policy_folder, base, seed=2).key != key
    assert fit(store, data, policy_folder, base.replace(learning_rate=1e-4)).key != key


def test_nothing_to_fit_on_is_an_error(store: Store, policy_folder: Path) -> None:
    data = write_groups(store, [make_group("film", "good", stop_kind="dataset")], [])
    with pytest.raises(UserError, match="no pairs to fit a reward model on"):
        fit(store, data, policy_folder)


def test_no_holdout_gives_no_figures(store: Store, policy_folder: Path) -> None:
    reward = fit(store, write_data(store, praise_wins(8)), policy_folder, SETTINGS.replace(steps=1, holdout=0.0))
    assert [reward.result()[name] for name in ("accuracy_holdout", "temperature", "nll")] == [None] * 3


# --- its parts


def test_bradley_terry_by_hand() -> None:
    loss = bradley_terry(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(2)], abs=1e-6)


def test_microbatches_do_not_change_a_step(policy_folder: Path) -> None:
    draw = random.Random(0)
    rows = [[draw.randrange(1, 20) for _ in range(draw.randrange(3, 12))] for _ in range(12)]
    batch = [RewardPair(f"p{i}", rows[2 * i], rows[2 * i + 1]) for i in range(6)]
    steps = []
    for max_tokens in (1, 40, 10_000):
        model = new_reward_model(policy_folder, 3, "")
        (metrics,) = train(model, [batch], learning_rate=1e-3, weight_decay=0.0, max_tokens=max_tokens)
        steps.append((metrics["loss"], metrics["grad_norm"]))
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)
    assert steps[0] == pytest.approx(steps[2], rel=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    shares = [learning_rate_share(step, 20) for step in range(20)]
    assert shares[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert shares[1:] == sorted(shares[1:], reverse=True)
    assert learning_rate_share(20, 20) == pytest.approx(0.1)
    assert learning_rate_share(0, 1) == 1.0


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.floats(0, 0.9))
def test_the_holdout_shares_no_prompt_with_the_training_pairs(prompts: list[int], share: float) -> None:
    pairs = [RewardPair(f"p{number}", [1], [2]) for number in prompts]
    kept, held_out = split_holdout(pairs, share)
    assert {pair.prompt_id for pair in kept}.isdisjoint(pair.prompt_id for pair in held_out)
    assert len(kept) + len(held_out) == len(pairs)
    assert split_holdout(pairs[::-1], share)[1] == held_out[::-1]


def test_an_epoch_shows_every_pair_once() -> None:
    pairs = [RewardPair(f"p{number}", [1], [2]) for number in range(10)]
    shown = [pair.prompt_id for batch in batches(pairs, 5, 4, seed=0) for pair in batch]
    assert sorted(shown[:10]) == sorted(shown[10:]) == sorted(pair.prompt_id for pair in pairs)
    assert shown[:10] != shown[10:]
