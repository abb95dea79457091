"""Which shortcuts a model takes: known by name and configuration, announced once where it takes fewer."""

import logging
from functools import cache
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel

from sail.policy.fused_head import LogitTransform
from sail.policy.fused_layers import fuse_layers
from sail.policy.trees import TREE_ATTENTION

# Plain causal softmax attention through transformers' AttentionInterface, kwargs passed on, positions by position_ids.
# Not those that cap its scores (gemma2, vaultgemma): no kernel of tree_attention does.
_PLAIN_ATTENTION = {
    "cohere", "gemma", "glm4", "granite", "helium", "llama", "mistral", "mixtral", "olmo2", "phi", "phi3", "qwen2",
    "qwen3", "qwen3_moe",
}  # fmt: skip
# logits = transform(lm_head(hidden)) with the transform that logit_transform knows; a tied T5 scales before lm_head.
_PLAIN_HEAD = _PLAIN_ATTENTION | {
    "cohere2", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "longt5", "mt5", "smollm3", "stablelm", "t5", "umt5",
}  # fmt: skip


def bare_model(model: torch.nn.Module) -> Any:
    """The transformers model below DDP, torch.compile and a PEFT adapter."""
    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def fused_head_of(model: Any) -> torch.nn.Linear | None:
    """The output head, where log-probs can be had from it tile by tile."""
    kind, head = model.config.model_type, model.get_output_embeddings()
    if kind not in _PLAIN_HEAD:
        _announce(f"{kind}: its head is not known here, log-probs come from full logits (slower, more memory)")
        return None
    if not isinstance(head, torch.nn.Linear) or not head.weight.is_floating_point():
        _announce(f"{kind}: its head is a {type(head).__name__}, log-probs come from full logits (more memory)")
        return None
    return head


def takes_trees(model: Any) -> bool:
    """Whether rows with one prompt may share it; sets the model's attention to the one that can, and
    fuses the layers that are known."""
    config = model.config
    if config.model_type not in _PLAIN_ATTENTION or config._attn_implementation not in ("sdpa", TREE_ATTENTION):
        _announce(f"{config.model_type}, {config._attn_implementation}: its attention takes no shared prompts (slower)")
        return False
    if any(kind != "full_attention" for kind in _layer_types(config)):
        _announce(f"{config.model_type}: attention in windows takes no shared prompts, rows are padded (slower)")
        return False
    if config._attn_implementation != TREE_ATTENTION:
        model.set_attn_implementation(TREE_ATTENTION)
        fuse_layers(model)
    return True


def _layer_types(config: Any) -> list[str]:
    windowed = getattr(config, "sliding_window", None) is not None
    return getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"]


def cast_experts(model: Any) -> None:
    """Under autocast the experts of a mixture take plain products: transformers' grouped one stays float32."""
    if model.config._experts_implementation == "eager" or not torch.is_autocast_enabled(model.device.type):
        return
    model.set_experts_implementation("eager")


def logit_transform(config: Any) -> LogitTransform:
    """Scale and soft cap as the architecture's forward applies them after the head."""
    scale = 1.0
    if config.model_type in ("cohere", "cohere2"):
        scale = config.logit_scale
    elif config.model_type == "granite":
        scale = 1 / config.logits_scaling
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None))


@cache
def _announce(message: str) -> None:
    logging.getLogger(__name__).warning(message)
