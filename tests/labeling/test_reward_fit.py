"""Fitting a reward model: it learns, it repeats itself byte for byte, its holdout is honest."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from sail.core.artifacts import Artifact, leaf
from sail.core.atomic import file_sha256, tree_files
from sail.core.errors import UserError
from sail.core.labeler_settings import RewardFitSettings
from sail.core.metrics import METRICS
from sail.core.records import Example, ScoredGroup
from sail.core.run_settings import RewardModelLabeler
from sail.core.store import Store
from sail.labeling.labelers.reward_model import RewardOrigin, score_examples
from sail.labeling.reward_fit import METRICS_FILE, fit_reward_model
from sail.labeling.reward_loss import pair_loss
from sail.labeling.reward_model import load_reward_model, new_reward_model
from sail.labeling.reward_pairs import RewardPair, batches, split_holdout
from sail.labeling.reward_training import learning_rate_share, train
from sail.labeling.scores import make_labeler, score_responses

from .doubles import make_group
from .stored import verdict_of, write_data, write_groups

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
    assert result["reward/accuracy_holdout"] > 0.9
    assert result["pairs"] + result["pairs_holdout"] == 120
    assert result["steps"] == 30
    assert result["reward/nll_holdout"] < math.log(2)
    assert 0 <= result["reward/ece_holdout"] < 0.2
    assert METRICS.keys() >= result.keys() - {"steps", "pairs", "pairs_holdout"}
    groups = [make_group("film", "the film was great .", "the film was awful .")]
    labeler = make_labeler("rm", RewardModelLabeler(fit=SETTINGS), RewardOrigin(reward))
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


def test_known_noise_of_the_verdicts_does_not_come_back_with_the_temperature(store: Store, policy_folder: Path) -> None:
    groups = [make_group(*row, stop_kind="dataset") for row in praise_wins(160)]
    verdicts = [replace(verdict_of(group), p_chosen=0.8) for group in groups]  # a fifth, as if flipped
    reward = fit(store, write_groups(store, groups, verdicts), policy_folder, SETTINGS.replace(label_noise=0.2))
    texts = ("the film was great .", "the film was awful .")
    model = load_reward_model(reward.path / "model", "")
    good, bad = score_examples(model, [Example(groups[0].prompt.messages, text, True) for text in texts], 2)
    assert math.exp((bad - good) / reward.result()["reward/temperature"]) < 0.01  # its soft label is near 1, not 0.8
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert reward.result()["reward/nll_holdout"] == pytest.approx(entropy, abs=1e-3)
    assert reward.result()["reward/ece_holdout"] < 0.01


def test_no_holdout_gives_no_figures(store: Store, policy_folder: Path) -> None:
    reward = fit(store, write_data(store, praise_wins(8)), policy_folder, SETTINGS.replace(steps=1, holdout=0.0))
    assert reward.result() == {"steps": 1, "pairs": 8, "pairs_holdout": 0}


def test_a_classifier_keeps_its_head_and_goes_on(store: Store, policy_folder: Path) -> None:
    data = write_data(store, praise_wins(60))
    first = fit(store, data, policy_folder)
    again = fit(store, data, first.path / "model", SETTINGS.replace(steps=1, learning_rate=1e-9))
    assert json.loads((again.path / METRICS_FILE).read_text())["rewards/accuracies"] > 0.9


def test_a_classifier_with_two_outputs_is_no_start(store: Store, policy_folder: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=2).save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match=r"fit\.init_from: .* is a classifier with 2 outputs"):
        fit(store, write_data(store, praise_wins(8)), tmp_path / "two")


def test_a_head_on_the_policy_leaves_the_policy_as_it_was(store: Store, policy_folder: Path) -> None:
    settings = SETTINGS.replace(train="head", steps=40, learning_rate=0.05)
    reward = fit(store, write_data(store, praise_wins(120)), policy_folder, settings)
    before, after = load_file(policy_folder / "model.safetensors"), load_file(reward.path / "model/model.safetensors")
    assert all(torch.equal(before[name], weight) for name, weight in after.items() if name != "score.weight")
    assert reward.result()["reward/accuracy_holdout"] > 0.75  # of a random body, whose last state knows few words


def test_margins_of_the_data_reach_the_loss(store: Store, policy_folder: Path) -> None:
    groups = [make_group(*row, stop_kind="dataset") for row in praise_wins(40)]
    verdicts = [replace(verdict_of(group), margin=3.0) for group in groups]
    settings = SETTINGS.replace(steps=1, holdout=0.0)
    losses = [
        json.loads((fit(store, data, policy_folder, settings.replace(margin=margin)).path / METRICS_FILE).read_text())
        for data, margin in (
            (write_groups(store, groups, verdicts), "column"),
            (write_groups(store, groups, [verdict_of(group) for group in groups]), 3.0),
        )
    ]
    assert losses[0] == losses[1]
    assert losses[0]["loss"] == pytest.approx(math.log(1 + math.exp(3.0)), abs=0.2)


def test_columns_that_the_settings_ask_for_are_named_where_they_are_missing(store: Store, policy_folder: Path) -> None:
    data = write_data(store, praise_wins(8))
    with pytest.raises(UserError, match=r"fit\.margin: a pair of prompt .* has no column 'margin'.*columns:"):
        fit(store, data, policy_folder, SETTINGS.replace(margin="column"))
    with pytest.raises(UserError, match=r"fit\.ties: .* no pair of 'prefs' is one.*column 'tie'"):
        fit(store, data, policy_folder, SETTINGS.replace(ties="davidson"))


def test_ties_bring_rewards_together(store: Store, policy_folder: Path) -> None:
    texts = ("the film was great .", "the film was awful .", "the film was lovely .", "the film was dull .")
    groups = [make_group(f"{n} film", *texts[:2] if n % 2 else texts[2:], stop_kind="dataset") for n in range(80)]
    verdicts = [replace(verdict_of(group), p_chosen=1.0 if n % 2 else 0.5) for n, group in enumerate(groups)]
    reward = fit(store, write_groups(store, groups, verdicts), policy_folder, SETTINGS.replace(ties="rao_kupper"))
    model = load_reward_model(reward.path / "model", "")
    great, awful, lovely, dull = score_examples(model, [Example(groups[0].prompt.messages, t, True) for t in texts], 4)
    assert great - awful > 4 * abs(lovely - dull)


# --- its parts


def test_microbatches_do_not_change_a_step(policy_folder: Path) -> None:
    draw = random.Random(0)
    rows = [[draw.randrange(1, 20) for _ in range(draw.randrange(3, 12))] for _ in range(12)]
    batch = [RewardPair(f"p{i}", rows[2 * i], rows[2 * i + 1]) for i in range(6)]
    steps = []
    for max_tokens in (1, 40, 10_000):
        model = new_reward_model(policy_folder, 3, "")
        settings = {"learning_rate": 1e-3, "weight_decay": 0.0}
        (metrics,) = train(model, [batch], loss=pair_loss(), max_tokens=max_tokens, **settings)
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
