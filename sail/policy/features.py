"""Features of responses: what a sparse autoencoder reads in one layer of a model, averaged over the response.

The one loss that looks into the model needs them (FPO, arXiv 2411.07618). One forward pass gives log-probs and
features; the reference's features are scored once, as its log-probs are, and stored sparse.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import ResponseFeatures, SampleGroup
from sail.core.store import Builder, Recipe, Workspace
from sail.policy.architectures import bare_model, fused_head_of
from sail.policy.autoencoder import SaeSource, SparseAutoencoder, load_sae
from sail.policy.devices import to_device
from sail.policy.loading import Checkpoint, load_policy
from sail.policy.logprobs import ResponseTokens, batch_of, fused_head_logps, microbatches
from sail.policy.rows import Row

VERSION = 2


def logps_and_features(
    model: torch.nn.Module, rows: Sequence[Row], sae: SparseAutoencoder, *, statistics: bool = False
) -> tuple[ResponseTokens, Tensor]:
    """Token log-probs, and the features of every row, [R, F] float32, 0 for a response without tokens.

    Averaged over the positions that predict the response's tokens; differentiable in the model.
    """
    width = bare_model(model).config.get_text_config().hidden_size
    if len(sae.weight) != width:
        problem = f"an autoencoder of states of size {len(sae.weight)}, and the model's have {width}"
        raise UserError(problem, where="components.sae.path", cure="Use one that was trained on this model")
    scored, states = response_states(model, rows, sae.layer, statistics=statistics)
    # each response's [T, F] activations are made again in the backward pass: all of them would be the largest tensor
    return scored, torch.stack([recomputed(_mean_features, sae, each, use_reentrant=False) for each in states])


def response_states(
    model: torch.nn.Module, rows: Sequence[Row], layer: int, *, statistics: bool = False
) -> tuple[ResponseTokens, tuple[Tensor, ...]]:
    """Token log-probs, and of every row the layer's output where it predicts the row's T tokens, [T, H]."""
    bare = bare_model(model)
    head = fused_head_of(bare)
    if head is None:
        problem = f"features of a {bare.config.model_type} cannot be had together with its log-probs"
        raise UserError(problem, where="components.sae", cure="Use a decoder model whose head is known, such as gemma2")
    batch = batch_of(model, rows)
    with _output_of(_layer(bare, layer)) as outputs:
        scored = fused_head_logps(model, head, batch, statistics=statistics)
    return scored, batch.at_scored(outputs[0]).split([len(row.response_ids) for row in rows])


def _mean_features(sae: SparseAutoencoder, hidden: Tensor) -> Tensor:
    return sae.encode(hidden).sum(0) / max(1, len(hidden))


def _layer(bare: Any, layer: int) -> torch.nn.Module:
    """The decoder layer of that number, from 0, if the model has it."""
    layers = getattr(bare.base_model, "layers", ())
    if not 0 <= layer < len(layers):
        problem = f"layer {layer} of a model with {len(layers)} decoder layers"
        raise UserError(problem, where="components.sae.layer", cure="Count from 0")
    found: torch.nn.Module = layers[layer]
    return found


@contextmanager
def _output_of(layer: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collects the layer's output [B, T, H]; gradient checkpointing runs a layer again, and that one comes later."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    try:
        yield outputs
    finally:
        hook.remove()


def score_features(
    builder: Builder,
    responses: Artifact,
    checkpoint: Checkpoint,
    source: SaeSource,
    *,
    bf16: bool = False,
    max_tokens: int = 16384,
) -> Artifact:
    """Table "features" of ResponseFeatures: every response of `responses` under `checkpoint`."""

    def run(workspace: Workspace) -> dict[str, float]:
        groups = responses.read(SampleGroup, "groups")
        pairs = [(group.prompt, sample) for group in groups for sample in group.samples]
        rows = [Row(prompt.token_ids, sample.token_ids) for prompt, sample in pairs]
        features = _features_of(load_policy(checkpoint), rows, load_sae(source), bf16=bf16, max_tokens=max_tokens)
        records = [_sparse(sample.response_id, each) for (_, sample), each in zip(pairs, features, strict=True)]
        workspace.write("features", records, ResponseFeatures)
        active = sum(len(record.indices) for record in records)
        return {"responses": len(records), "active_per_response": active / max(1, len(records))}

    settings = {"layer": source.layer, "bf16": bf16}
    inputs = {"responses": responses, "checkpoint": checkpoint, "sae": source.file}
    return builder.build(Recipe("features", VERSION, settings, inputs), run)


def _features_of(
    model: torch.nn.Module, rows: Sequence[Row], sae: SparseAutoencoder, *, bf16: bool, max_tokens: int
) -> list[Tensor]:
    device = to_device(model)
    found: dict[int, Tensor] = {}
    for part in microbatches(model, [[row] for row in rows], max_tokens):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            _, features = logps_and_features(model, [rows[index] for index in part], sae)
        found |= zip(part, features.cpu(), strict=True)
    return [found[index] for index in range(len(rows))]


def _sparse(response_id: str, features: Tensor) -> ResponseFeatures:
    (active,) = features.nonzero(as_tuple=True)
    return ResponseFeatures(response_id, tuple(active.tolist()), tuple(features[active].tolist()))


def read_features(artifact: Artifact) -> dict[str, ResponseFeatures]:
    """response_id -> its features."""
    return {record.response_id: record for record in artifact.read(ResponseFeatures, "features")}
