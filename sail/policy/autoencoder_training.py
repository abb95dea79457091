"""A sparse autoencoder of a model's own hidden states, trained here: for models that nobody trained one for (FPO).

    f = relu(h W_enc + b_enc),  h' = f W_dec + b_dec
    loss = mean |h - h'|^2 / v + sparsity mean sum_i f_i |W_dec_i| / sqrt(v),  v = mean |h - mean h|^2

The L1 penalty of Cunningham et al. 2023 (arXiv 2309.08600), with every feature weighed by its direction's norm
(Anthropic's circuits update of April 2024), as else a small f with a large W_dec would be sparse for free.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from sail.core.settings import Settings, meaning
from sail.policy.devices import to_device
from sail.policy.features import response_states
from sail.policy.logprobs import microbatches
from sail.policy.rows import Row


class AutoencoderSettings(Settings):
    """One autoencoder. Equal settings, model and rows give equal weights on one machine type."""

    layer: int = meaning(doc="decoder layer, from 0, whose output it reads", ge=0)
    width: int = meaning(doc="features", ge=1)
    steps: int = meaning(1000, "AdamW steps", ge=1)
    batch_size: int = meaning(1024, "hidden states a step", ge=1)
    learning_rate: float = meaning(3e-3, "cosine to zero", gt=0)
    sparsity: float = meaning(0.05, "weight of the L1 penalty, whatever the scale of the states", ge=0)
    seed: int = meaning(0, "of the weights and the batches", ge=0)


class TrainedAutoencoder(NamedTuple):
    """weights: W_enc [H, F], b_enc [F], W_dec [F, H], b_dec [H], Gemma Scope's names; figures over all states."""

    weights: dict[str, Tensor]
    figures: dict[str, float]
    """states; unexplained: share of the states' variance it misses, >= 0; active: features above 0 in a state"""

    def save(self, path: Path) -> None:
        save_file(self.weights, path)


def train_autoencoder(
    model: torch.nn.Module, rows: Sequence[Row], settings: AutoencoderSettings, *, max_tokens: int = 16384
) -> TrainedAutoencoder:
    """On the states that predict the rows' response tokens, all held in memory: 4 bytes x tokens x H."""
    states = collect_states(model, rows, settings.layer, max_tokens)
    generator = torch.Generator().manual_seed(settings.seed)
    weights = _new_weights(states, settings.width, generator)
    optimizer = torch.optim.AdamW([each.requires_grad_() for each in weights.values()], weight_decay=0.0)
    variance = (states - states.mean(0)).square().sum(-1).mean()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        chosen = torch.randint(len(states), (settings.batch_size,), generator=generator)
        missed, penalty, _ = _terms(states[chosen.to(states.device)], weights)
        optimizer.zero_grad()
        (missed / variance + settings.sparsity * penalty / variance.sqrt()).backward()
        optimizer.step()
    with torch.no_grad():
        missed, _, active = _terms(states, weights)
    figures = {"states": len(states), "unexplained": float(missed / variance), "active": float(active)}
    return TrainedAutoencoder({name: each.detach().cpu().contiguous() for name, each in weights.items()}, figures)


def collect_states(model: torch.nn.Module, rows: Sequence[Row], layer: int, max_tokens: int = 16384) -> Tensor:
    """[N, H] float32: the layer's output wherever it predicts a token of a row's response."""
    to_device(model)
    found = []
    for part in microbatches(model, [[row] for row in rows], max_tokens):
        with torch.no_grad():
            _, states = response_states(model, [rows[index] for index in part], layer)
        found += [each.float() for each in states]
    return torch.cat(found)


def _new_weights(states: Tensor, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random directions of norm 1, read with what they write; the mean is the decoder's to say."""
    directions = torch.randn(width, states.shape[1], generator=generator)
    directions = (directions / directions.norm(dim=-1, keepdim=True)).to(states)
    mean = states.mean(0)
    return {
        "W_enc": directions.T.clone(), "b_enc": -(directions @ mean), "W_dec": directions.clone(), "b_dec": mean.clone()
    }  # fmt: skip


def _terms(states: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error, penalty and active features, each a mean over the states."""
    features = torch.relu(states @ weights["W_enc"] + weights["b_enc"])
    missed = (features @ weights["W_dec"] + weights["b_dec"] - states).square().sum(-1).mean()
    penalty = (features * weights["W_dec"].norm(dim=-1)).sum(-1).mean()
    return missed, penalty, (features > 0).float().sum(-1).mean()
