"""What a microbatch's losses look at: log-probs and, where a loss needs them, how far features have moved."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sail.objectives.features import feature_distances
from sail.policy.autoencoder import SparseAutoencoder
from sail.policy.features import logps_and_features
from sail.policy.logprobs import ResponseTokens, token_logps
from sail.update.items import Item, Side


def policy_outputs(
    model: torch.nn.Module, items: Sequence[Item], sae: SparseAutoencoder | None, *, statistics: bool
) -> tuple[ResponseTokens, Tensor | None]:
    """One forward pass over all sides: token log-probs, and [R] distances of features where there is an autoencoder."""
    sides = [side for item in items for side in item.sides]
    rows = [side.row for side in sides]
    if sae is None:
        return token_logps(model, rows, statistics=statistics), None
    scored, features = logps_and_features(model, rows, sae, statistics=statistics)
    return scored, feature_distances(features, _reference(sides, features), sae.k)


def _reference(sides: Sequence[Side], like: Tensor) -> Tensor:
    """The sides' stored features, [R, F]."""
    dense = torch.zeros_like(like)
    for index, side in enumerate(sides):
        assert side.ref_features is not None, "the reference's features are stored before the update"
        at = torch.tensor(side.ref_features.indices, dtype=torch.int64, device=like.device)
        dense[index, at] = like.new_tensor(side.ref_features.values)
    return dense
