"""A sparse autoencoder trained here: of the right states, sparse by its penalty, the same again, read by the loss."""

from pathlib import Path

import pytest
import torch

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.policy.autoencoder import SaeSource, load_sae
from sail.policy.autoencoder_training import AutoencoderSettings, collect_states, train_autoencoder
from sail.policy.features import logps_and_features
from sail.policy.rows import Row
from tests.policy.oracle import tiny_model
from tests.policy.tiny_sae import hidden_states

ROWS = [Row((5, 6, 7 + index), tuple(range(8 + index, 16 + index))) for index in range(12)]
SETTINGS = AutoencoderSettings(layer=1, width=48, steps=200, batch_size=64, learning_rate=1e-2)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])  # rows in trees, and padded ones
def test_states_are_those_of_plain_forwards_in_whatever_microbatches(kind):
    model = tiny_model(kind)
    with torch.no_grad():
        expected = torch.cat([hidden_states(model, row, 1) for row in ROWS])
    for max_tokens in (24, 16384):
        torch.testing.assert_close(collect_states(model, ROWS, 1, max_tokens), expected, rtol=1e-4, atol=1e-5)


def test_it_explains_the_states_and_more_penalty_makes_it_sparser():
    model = tiny_model("qwen2")
    loose, strict = (
        train_autoencoder(model, ROWS, SETTINGS.replace(sparsity=sparsity)).figures for sparsity in (0.0, 0.3)
    )
    assert loose["states"] == 12 * 8 and loose["unexplained"] < 0.05
    assert strict["active"] < 0.7 * loose["active"] and loose["unexplained"] < strict["unexplained"] < 0.9


def test_figures_are_those_of_the_saved_weights(tmp_path: Path):
    model = tiny_model("qwen2")
    trained = train_autoencoder(model, ROWS, SETTINGS)
    trained.save(tmp_path / "sae.safetensors")
    sae = load_sae(SaeSource(leaf(tmp_path / "sae.safetensors"), layer=1, k=4))
    states = collect_states(model, ROWS, 1)
    features = sae.encode(states)
    missed = (features @ trained.weights["W_dec"] + trained.weights["b_dec"] - states).square().sum()
    assert trained.figures["unexplained"] == pytest.approx(float(missed / (states - states.mean(0)).square().sum()))
    assert trained.figures["active"] == pytest.approx(float((features > 0).float().sum(-1).mean()))
    _, means = logps_and_features(model, ROWS[:1], sae)
    torch.testing.assert_close(means[0], features[:8].mean(0), rtol=1e-4, atol=1e-5)


def test_equal_settings_give_equal_weights_and_another_seed_others():
    model = tiny_model("qwen2")
    short = SETTINGS.replace(steps=3)
    first, again, other = (
        train_autoencoder(model, ROWS, each).weights for each in (short, short, short.replace(seed=1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["W_enc"], other["W_enc"])


def test_a_layer_the_model_has_not_is_refused():
    with pytest.raises(UserError, match="layer 2 of a model with 2 decoder layers"):
        train_autoencoder(tiny_model("qwen2"), ROWS, SETTINGS.replace(layer=2))
