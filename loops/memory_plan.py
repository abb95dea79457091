"""Memory of each stage, from the model's config and the settings alone: no weights are read.

An upper bound of what one process holds. Per token and decoder layer the update keeps, for its backward pass, about

    6 h    two norms: their input, the normalised and the scaled states
    6 q    queries, keys and values (repeated for shared heads, prompts' keys once more a branch), attention's output
    4 f    gate, its activation, up, their product

numbers (h hidden size, q width of the queries, f of the feed-forward part). What passes through a layer takes that
once more, or else what passes through the head: its states and a few tiles of logits, never all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig

from sail.core.run_settings import PhaseSettings, RewardModelLabeler, RunSettings
from sail.policy.head_tiles import TILE

_WIDE, _HALF = 4, 2  # bytes of a number
OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "rmsprop": 4, "sgd": 0}  # a trained weight
_TILES = 3  # logits, their softmax, their gradient
_KEPT_H, _KEPT_Q, _KEPT_F = 6, 6, 4  # the table above
_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers")  # of an encoder-decoder, beside the encoder's
_CONTEXT = 512  # of models without a limit: what T5 was trained on


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory."""

    weights: int
    adapter: int  # weights of an adapter of rank 1 on all linear layers but the head
    hidden: int
    queries: int
    keys: int
    feed_forward: int
    layers: int
    vocab: int
    context: int


@dataclass(frozen=True)
class StageMemory:
    """Bytes that a stage holds at its peak, by what they are for."""

    stage: str
    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    cache: float = 0  # of keys and values
    note: str = ""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.cache


def shape_of(config: PretrainedConfig) -> Shape:
    """Counted on a model without storage."""
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    others = (
        model.get_output_embeddings(),
        *(each for each in model.modules() if isinstance(each, torch.nn.Embedding)),
    )
    matrices = [each.weight for each in model.modules() if each not in others and _has_matrix(each)]
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_attention_heads
    return Shape(
        weights=sum(weight.numel() for weight in model.parameters()),
        adapter=sum(sum(matrix.shape) for matrix in matrices),
        hidden=text.hidden_size,
        queries=width * heads,
        keys=width * (getattr(text, "num_key_value_heads", None) or heads),
        feed_forward=_feed_forward(text),
        layers=text.num_hidden_layers + max(getattr(text, name, None) or 0 for name in _DECODER_LAYERS),
        vocab=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None) or _CONTEXT,
    )


def _has_matrix(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2


def _feed_forward(text: Any) -> int:
    """Width a token passes through: of its experts together, where there are some."""
    names = ("intermediate_size", "d_ff", "n_inner", "ffn_dim")
    width = next((getattr(text, name) for name in names if getattr(text, name, None)), 4 * text.hidden_size)
    experts = getattr(text, "num_experts_per_tok", None) or 1
    return int(experts * (getattr(text, "moe_intermediate_size", None) or width if experts > 1 else width))


def stages(settings: RunSettings, shape: Shape) -> list[StageMemory]:
    """The most any phase takes, stage by stage."""
    found: dict[str, StageMemory] = {}
    for stage in (each for phase in settings.phases for each in _stages(phase, settings, shape)):
        if stage.stage not in found or stage.total > found[stage.stage].total:
            found[stage.stage] = stage
    return list(found.values())


def _stages(phase: PhaseSettings, settings: RunSettings, shape: Shape) -> Iterator[StageMemory]:
    if phase.routes:
        yield update_memory(phase, settings, shape)
        yield scoring_memory(phase, settings, shape)
    for labeler in settings.labelers.values():
        if isinstance(labeler, RewardModelLabeler) and labeler.fit is not None and labeler.fit.init_from is None:
            tokens = _tokens(labeler.fit.max_tokens_per_microbatch, labeler.fit.train_batch_size, settings, shape)
            yield replace(_trained(shape, shape.weights, "adamw", _activations(shape, tokens)), stage="reward fit")
    if any(route.samples for route in phase.routes.values()) or phase.evaluation.num_prompts:
        yield sampling_memory(phase, settings, shape)


def update_memory(phase: PhaseSettings, settings: RunSettings, shape: Shape) -> StageMemory:
    """One process of the update; fsdp2 shards what is not activations."""
    update = phase.update
    tokens = _tokens(update.max_tokens_per_microbatch, update.train_batch_size, settings, shape)
    trained = trained_weights(settings, shape)
    activations = _activations(shape, tokens, bf16=update.bf16, checkpointing=update.gradient_checkpointing)
    memory = _trained(shape, trained, update.optimizer, activations)
    if phase.components.value is not None:  # a network of the policy's size beside it, and its own backward pass
        memory = _sum(memory, _trained(shape, shape.weights, "adamw", activations))
    if update.bf16:
        memory = replace(memory, activations=memory.activations + _HALF * shape.weights)  # autocast's copies
    processes = settings.launch.num_processes or len(settings.launch.gpus) or 1
    if settings.launch.accelerate_config == "fsdp2":
        memory = replace(
            memory, weights=memory.weights / processes, gradients=memory.gradients / processes,
            optimizer=memory.optimizer / processes,
            activations=memory.activations + 2 * _WIDE * shape.weights / max(1, shape.layers),  # gathered, two at once
        )  # fmt: skip
    return replace(memory, stage="update", note="" if processes == 1 else f"each of {processes} processes")


def trained_weights(settings: RunSettings, shape: Shape) -> int:
    return shape.weights if settings.lora is None else settings.lora.r * shape.adapter


def scoring_memory(phase: PhaseSettings, settings: RunSettings, shape: Shape) -> StageMemory:
    """Log-probs of the reference or the policy: a forward pass that keeps nothing."""
    update = phase.update
    tokens = min(update.max_tokens_per_microbatch, _tokens(2**40, 2**20, settings, shape))
    passing = 4 * shape.hidden + 3 * max(shape.queries, shape.feed_forward)
    activations = _WIDE * tokens * (passing + 2 * min(shape.vocab, TILE))
    copies = _HALF * shape.weights if update.bf16 else 0
    return StageMemory("scoring", weights=_WIDE * shape.weights, activations=activations + copies)


def sampling_memory(phase: PhaseSettings, settings: RunSettings, shape: Shape) -> StageMemory:
    """The server's share, or the in-process engine's."""
    vllm, generation = settings.vllm, phase.generation
    if generation.engine == "transformers" or phase.num_rounds == 0:
        length = min(shape.context, settings.max_length or shape.context)
        a_token = 2 * shape.keys * shape.layers
        cache = _WIDE * generation.batch_size * length * a_token
        activations = _WIDE * generation.batch_size * 2 * shape.vocab
        return StageMemory("sampling", _WIDE * shape.weights, activations=activations, cache=cache, note="at most")
    if vllm.mode == "external":
        return StageMemory("sampling", note="on other machines")
    on_gpu = torch.cuda.is_available()
    width = _HALF if vllm.dtype in ("bfloat16", "float16", "half") or (vllm.dtype == "auto" and on_gpu) else _WIDE
    if on_gpu:
        share = vllm.args.get("gpu-memory-utilization", 0.9)
        return StageMemory("sampling", width * shape.weights, note=f"the server takes {share} of each of its GPUs")
    return StageMemory("sampling", width * shape.weights, cache=vllm.kv_cache_gib * 2**30, note="the server")


def _trained(shape: Shape, trained: int, optimizer: str, activations: float) -> StageMemory:
    extra = trained if trained < shape.weights else 0  # an adapter's weights beside the model's
    table = (
        0 if extra else 2 * _WIDE * shape.vocab * shape.hidden
    )  # embedding's and head's gradient, before it is added
    return StageMemory(
        "", _WIDE * (shape.weights + extra), _WIDE * trained, OPTIMIZER_BYTES[optimizer] * trained, activations + table
    )


def _sum(one: StageMemory, other: StageMemory) -> StageMemory:
    return StageMemory(
        one.stage, one.weights + other.weights, one.gradients + other.gradients, one.optimizer + other.optimizer,
        one.activations + other.activations,
    )  # fmt: skip


def _tokens(budget: int, rows: int, settings: RunSettings, shape: Shape) -> int:
    """Of the largest microbatch: the budget, or all of a small batch's pairs; one pair never is cut."""
    length = min(shape.context, settings.max_length or shape.context)
    return max(min(budget, 2 * rows * length), min(budget, 2 * length))


def _activations(shape: Shape, tokens: int, *, bf16: bool = False, checkpointing: bool = False) -> float:
    """Kept for the backward pass, and of the layer or the head that is passed meanwhile."""
    narrow = _HALF if bf16 else _WIDE
    layer = _WIDE * _KEPT_H * shape.hidden + narrow * (_KEPT_Q * shape.queries + _KEPT_F * shape.feed_forward)
    if bf16:
        layer += _HALF * 2 * shape.hidden  # the linear layers' inputs once more
    head = _WIDE * (3 * shape.hidden + _TILES * min(shape.vocab, TILE))
    kept = _WIDE * shape.hidden if checkpointing else layer  # of each layer
    return float(tokens * (shape.layers * kept + max(layer, head)))
