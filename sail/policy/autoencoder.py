"""A user's sparse autoencoder of a model's hidden states: read from its file, encoder alone, left as it is."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from sail.core.artifacts import Leaf
from sail.core.errors import UserError
from sail.policy.devices import compute_device


@dataclass(frozen=True, slots=True)
class SaeSource:
    """A user's sparse autoencoder: its file, the decoder layer (from 0) whose output it reads, the k of FPO."""

    file: Leaf
    layer: int
    k: int


class SparseAutoencoder(NamedTuple):
    """The encoder of one layer, frozen: f(h) = relu(z) where z > threshold, else 0, z = h W + b.

    JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435); a threshold of 0 is plain ReLU. The decoder is not needed.
    """

    weight: Tensor
    """[H, F] float32"""
    bias: Tensor
    """[F]"""
    threshold: Tensor
    """[F]"""
    layer: int
    k: int

    def encode(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, F], float32 whatever the autocast: a threshold is no place for rounding."""
        with torch.autocast(hidden.device.type, enabled=False):
            raw = hidden.float() @ self.weight + self.bias
            return torch.relu(raw) * (raw > self.threshold)


def load_sae(source: SaeSource) -> SparseAutoencoder:
    """From a safetensors file with W_enc [H, F], b_enc [F] and, for JumpReLU, threshold [F]: Gemma Scope's names."""
    where = "components.sae.path"
    if source.file.path.suffix != ".safetensors":
        raise UserError(f"{source.file.path} is no safetensors file", where=where, cure="Convert it: same names")
    tensors = {name: tensor.float() for name, tensor in load_file(source.file.path).items()}
    if not {"W_enc", "b_enc"} <= set(tensors):
        names = ", ".join(sorted(tensors))
        raise UserError(f"{source.file.path} holds {names}", where=where, cure="It needs W_enc [H, F] and b_enc [F]")
    weight, bias = tensors["W_enc"], tensors["b_enc"]
    threshold = tensors.get("threshold", torch.zeros_like(bias))
    if weight.ndim != 2 or bias.shape != weight.shape[1:] or threshold.shape != bias.shape:
        shapes = f"W_enc {tuple(weight.shape)}, b_enc {tuple(bias.shape)}, threshold {tuple(threshold.shape)}"
        raise UserError(f"its shapes do not fit: {shapes}", where=where, cure="Give W_enc as [H, F], the others [F]")
    device = compute_device()
    return SparseAutoencoder(weight.to(device), bias.to(device), threshold.to(device), source.layer, source.k)
