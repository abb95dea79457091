"""A small sparse autoencoder, trained on a tiny model's own hidden states and saved under Gemma Scope's names."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sail.policy.rows import Row

STEPS, SPARSITY = 150, 3e-2


def hidden_states(model: torch.nn.Module, row: Row, layer: int) -> Tensor:
    """[T, H]: the layer's output where it predicts the row's T response tokens, from a plain forward of one row."""
    outputs: list[Tensor] = []
    hook = model.base_model.layers[layer].register_forward_hook(lambda _, args, out: outputs.append(out))
    model(input_ids=torch.tensor([[*row.prompt_ids, *row.response_ids]]))
    hook.remove()
    return outputs[0][0, len(row.prompt_ids) - 1 : -1]


def train_sae(model: torch.nn.Module, rows: Sequence[Row], layer: int, width: int, path: Path) -> Path:
    """|h - (f W_dec + b_dec)|^2 + SPARSITY |f|_1 over the rows' states; thresholds are set above the smallest ones."""
    with torch.no_grad():
        states = torch.cat([hidden_states(model, row, layer) for row in rows]).float()
    generator = torch.Generator().manual_seed(0)
    size = states.shape[1]
    weights = {
        "W_enc": torch.randn(size, width, generator=generator) / size**0.5, "b_enc": torch.zeros(width),
        "W_dec": torch.randn(width, size, generator=generator) / width**0.5, "b_dec": states.mean(0),
    }  # fmt: skip
    optimizer = torch.optim.Adam([weight.requires_grad_() for weight in weights.values()], lr=1e-2)
    for _ in range(STEPS):
        features = torch.relu(states @ weights["W_enc"] + weights["b_enc"])
        errors = features @ weights["W_dec"] + weights["b_dec"] - states
        loss = errors.square().sum(-1).mean() + SPARSITY * features.sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    saved = {name: weight.detach().contiguous() for name, weight in weights.items()}
    save_file(saved | {"threshold": torch.full((width,), 0.05)}, path)
    return path
