"""Features: the autoencoder's arithmetic, the right positions of the right layer, gradients, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.policy.autoencoder import SaeSource, SparseAutoencoder, load_sae
from sail.policy.features import logps_and_features
from sail.policy.logprobs import token_logps
from sail.policy.rows import Row
from tests.policy.oracle import gradient, relative_error, tiny_model, weights
from tests.policy.tiny_sae import hidden_states, train_sae

ROWS = [
    Row((5, 6, 7), (8, 9, 10, 2)), Row((5, 6, 7), (11, 2)), Row((12, 13), (14, 15, 16, 17, 2)), Row((5, 6, 7), (18,)),
]  # fmt: skip


def sae_of(model: torch.nn.Module, tmp_path: Path, layer: int = 0, k: int = 4) -> SparseAutoencoder:
    path = train_sae(model, ROWS, layer, width=24, path=tmp_path / "sae.safetensors")
    return load_sae(SaeSource(leaf(path), layer, k))


def plain_features(model: torch.nn.Module, sae: SparseAutoencoder) -> torch.Tensor:
    """[R, F], one row at a time."""
    found = []
    for row in ROWS:
        raw = hidden_states(model, row, sae.layer) @ sae.weight + sae.bias
        found.append(torch.where(raw > sae.threshold, raw, torch.zeros_like(raw)).mean(0))
    return torch.stack(found)


def test_a_jump_relu_by_hand():
    sae = SparseAutoencoder(torch.eye(3), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, 0.5, -9.0]), 0, 1)
    encoded = sae.encode(torch.tensor([[0.4, 0.4, -2.0], [0.6, -0.6, 2.0]]))
    torch.testing.assert_close(encoded, torch.tensor([[0.0, 1.4, 0.0], [0.6, 0.0, 2.0]]))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])  # rows in trees, and padded ones
def test_features_are_those_of_plain_forwards_and_the_trained_autoencoder_is_sparse(kind, layer, tmp_path):
    model = tiny_model(kind)
    sae = sae_of(model, tmp_path, layer)
    scored, features = logps_and_features(model, ROWS, sae)
    expected = plain_features(model, sae)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert 0.05 < float((expected > 0).float().mean()) < 0.95
    torch.testing.assert_close(scored.logps, token_logps(model, ROWS).logps)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_through_log_probs_and_features_is_that_of_plain_forwards(checkpointing, tmp_path):
    model = tiny_model("qwen2")
    sae = sae_of(model, tmp_path, layer=1)
    pulls = torch.linspace(-1.0, 1.0, 24)

    def backward(logps: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (logps.sum() + (weights(len(ROWS)).float()[:, None] * pulls * features).sum()).backward()
        return gradient(model)

    logps = token_logps(model, ROWS).logps
    expected = backward(logps, plain_features(model, sae))
    if checkpointing:
        model.gradient_checkpointing_enable()
    scored, features = logps_and_features(model, ROWS, sae)
    assert relative_error(backward(scored.logps, features), expected) < 1e-5


def test_a_response_without_tokens_has_no_features(tmp_path):
    model = tiny_model("qwen2")
    _, features = logps_and_features(model, [ROWS[0], Row((5, 6), ())], sae_of(model, tmp_path))
    assert features[0].abs().max() > 0 and features[1].abs().max() == 0


def test_autoencoders_that_do_not_fit_are_refused(tmp_path):
    model = tiny_model("qwen2")
    sae = sae_of(model, tmp_path)
    with pytest.raises(UserError, match="layer 7 of a model with 2 decoder layers"):
        logps_and_features(model, ROWS, sae._replace(layer=7))
    with pytest.raises(UserError, match="states of size 24, and the model's have 32"):
        logps_and_features(model, ROWS, sae._replace(weight=sae.weight[:24]))
    with pytest.raises(UserError, match="cannot be had together"):
        logps_and_features(tiny_model("opt", word_embed_proj_dim=32, ffn_dim=48), ROWS, sae)
    bad = {
        "nothing.safetensors": {"weight": torch.ones(2)},
        "crooked.safetensors": {"W_enc": torch.ones(2, 3), "b_enc": torch.ones(2)},
    }
    for (name, tensors), problem in zip(bad.items(), ["holds weight", "shapes do not fit"], strict=True):
        save_file(tensors, tmp_path / name)
        with pytest.raises(UserError, match=problem):
            load_sae(SaeSource(leaf(tmp_path / name), 0, 1))
    (tmp_path / "sae.npz").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors file"):
        load_sae(SaeSource(leaf(tmp_path / "sae.npz"), 0, 1))
