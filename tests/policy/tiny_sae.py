"""A small sparse autoencoder, trained on a tiny model's own hidden states and saved under Gemma Scope's names."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sail.policy.autoencoder_training import AutoencoderSettings, train_autoencoder
from sail.policy.rows import Row


def hidden_states(model: torch.nn.Module, row: Row, layer: int) -> Tensor:
    """[T, H]: the layer's output where it predicts the row's T response tokens, from a plain forward of one row."""
    outputs: list[Tensor] = []
    hook = model.base_model.layers[layer].register_forward_hook(lambda _, args, out: outputs.append(out))
    model(input_ids=torch.tensor([[*row.prompt_ids, *row.response_ids]]))
    hook.remove()
    return outputs[0][0, len(row.prompt_ids) - 1 : -1]


def train_sae(model: torch.nn.Module, rows: Sequence[Row], layer: int, width: int, path: Path) -> Path:
    """A few steps of the library's own training, and a threshold above the smallest features."""
    settings = AutoencoderSettings(layer=layer, width=width, steps=150, batch_size=64, learning_rate=1e-2)
    weights = train_autoencoder(model, rows, settings).weights
    save_file(weights | {"threshold": torch.full((width,), 0.05)}, path)
    return path
