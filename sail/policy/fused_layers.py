"""Norms, gated MLPs and rotary projections as one autograd function each: fewer passes over memory, less kept of them;
and a last layer that runs only what predicts a token.

transformers builds them from operations that each make a tensor and keep it for the backward; of the update of a small
model on a CPU that was a sixth. Here the passes are in place and only inputs are kept; a float32 result differs in its
last digits. What is not plain float32 on a CPU (autocast, a GPU, torch.compile, an adapter's or a sharded linear
layer) takes the module's own forward, as does every module that is not listed here by the exact name of its class.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from sail.policy.trees import tree_attention

_LLAMA_LIKE = ("Llama", "Mistral", "Mixtral", "Qwen2", "Granite")
_NORMS = {f"{kind}RMSNorm" for kind in (*_LLAMA_LIKE, "Glm4", "Helium", "Olmo2", "Phi3", "Qwen3", "Qwen3Moe")}
_GATED = {f"{kind}MLP" for kind in ("Llama", "Mistral", "Qwen2", "Granite", "Helium", "Olmo2", "Qwen3", "Qwen3Moe")}
_ATTENTION = {f"{kind}Attention" for kind in (*_LLAMA_LIKE, "Gemma")}
_DECODER = {f"{kind}DecoderLayer" for kind in ("Llama", "Mistral", "Qwen2", "Gemma")}
BLOCK = 1024  # rows of an MLP's backward at a time: what they need stays in the cache


def fuse_layers(model: nn.Module) -> None:
    """Give the modules that are known here their forward of one function, in place; twice is as good as once.

    By a class of the same name: a bound method as an attribute would hold its module, and keep a model that is dropped
    in memory until the garbage collector comes by.
    """
    for module in model.modules():
        kind: Any = type(module)
        forward = _forward_of(module)
        if forward is not None and not hasattr(kind, "unfused"):
            module.__class__ = _with_forward(kind, forward)


def _forward_of(module: Any) -> Callable[..., Any] | None:
    kind = type(module).__name__
    if not type(module).__module__.startswith("transformers."):
        return None
    if kind in _NORMS:
        return _norm_forward
    if kind in _GATED and isinstance(module.act_fn, nn.SiLU | SiLUActivation):
        return _mlp_forward
    if kind in _ATTENTION:
        return _attention_forward
    return _last_layer_forward if kind in _DECODER and _is_last(module.self_attn) else None


@cache
def _with_forward(kind: type[Any], forward: Callable[..., Any]) -> type[Any]:
    """The class with another forward, and its own as `unfused`."""
    return type(kind.__name__, (kind,), {"forward": forward, "unfused": kind.forward, "__module__": kind.__module__})


def _is_last(attention: Any) -> bool:
    return bool(attention.layer_idx == attention.config.num_hidden_layers - 1)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if not _plain(hidden_states, self.weight):
        return self.unfused(hidden_states)  # type: ignore[no-any-return]
    if not torch.is_grad_enabled():  # a token at a time, calls of Python are what costs: none to autograd
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
    return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-any-return]


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    linears = (self.gate_proj, self.up_proj, self.down_proj)
    if not (_plain(x, self.gate_proj.weight) and all(_ordinary(linear) and linear.bias is None for linear in linears)):
        return self.unfused(x)  # type: ignore[no-any-return]
    if not torch.is_grad_enabled():
        return self.down_proj(F.silu(self.gate_proj(x), inplace=True).mul_(self.up_proj(x)))  # type: ignore[no-any-return]
    result = _GatedMLP.apply(x.flatten(0, -2), *(linear.weight for linear in linears))
    return result.view(x.shape)  # type: ignore[no-any-return]


def _attention_forward(
    self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    if kwargs.get("trees") is None or not _takes_rotation(self, hidden_states, position_embeddings):
        own: tuple[Tensor, Tensor | None]
        own = self.unfused(hidden_states, position_embeddings, attention_mask, **kwargs)
        return own
    return _attention(self, hidden_states, hidden_states, position_embeddings, position_embeddings, **kwargs), None


def _takes_rotation(attention: Any, x: Tensor, turns: tuple[Tensor, Tensor]) -> bool:
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    whole = turns[0].shape[-1] == attention.head_dim
    return whole and _plain(x, attention.q_proj.weight) and all(map(_ordinary, linears))


def _attention(
    self: Any, x: Tensor, asking: Tensor, turns: tuple[Tensor, Tensor], of_asking: tuple[Tensor, Tensor], **kwargs: Any
) -> Tensor:
    """Of the rows `asking` [B, Q, H] to all rows x [B, T, H]; turns: cosines and sines of their positions."""
    by_head = _by_head(*turns)
    query = _rotated(self.q_proj, asking, by_head if of_asking is turns else _by_head(*of_asking))
    key = _rotated(self.k_proj, x, by_head)
    value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
    states = [heads.transpose(1, 2) for heads in (query, key, value)]
    dropout = self.attention_dropout if self.training else 0.0
    output, _ = tree_attention(self, *states, None, dropout=dropout, scaling=self.scaling, **kwargs)
    return self.o_proj(output.flatten(2))  # type: ignore[no-any-return]


def _rotated(linear: nn.Linear, x: Tensor, by_head: tuple[Tensor, Tensor]) -> Tensor:
    """[B, T, heads, D]"""
    if torch.is_grad_enabled():
        return _RotatedLinear.apply(x, linear.weight, linear.bias, *by_head)  # type: ignore[no-any-return]
    return _turn(linear(x), *by_head)


def _last_layer_forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """Of a decoder's last layer: of prompts it makes keys and values alone, the rest where a token is predicted.

    The other positions leave as they came.
    """
    trees, turns, attention = kwargs.get("trees"), kwargs["position_embeddings"], self.self_attn
    predicting = None
    if trees is not None and _takes_rotation(attention, hidden_states, turns):
        predicting = trees.predicting
    if predicting is None:
        return self.unfused(hidden_states, **kwargs)  # type: ignore[no-any-return]
    normed = self.input_layernorm(hidden_states)
    asking, residual, cos, sin = (states.index_select(1, predicting) for states in (normed, hidden_states, *turns))
    residual = residual + _attention(attention, normed, asking, turns, (cos, sin), trees=trees)
    residual = residual + self.mlp(self.post_attention_layernorm(residual))
    return hidden_states.index_copy(1, predicting, residual)


def _plain(x: Tensor, weight: Tensor) -> bool:
    exact = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    return exact and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _ordinary(linear: nn.Module) -> bool:
    """Not wrapped by an adapter, and nothing is to happen when it is called (ZeRO gathers weights then)."""
    return type(linear) is nn.Linear and not linear._forward_pre_hooks and not linear._forward_hooks


class _RMSNorm(torch.autograd.Function):
    """y = w x r with r = (mean_i x_i^2 + eps)^(-1/2), along the last dimension of size H.

    dx = r (w g) - x r^3 / H sum_i w_i g_i x_i,   dw = sum over rows of g x r   (Zhang and Sennrich 2019)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[-1])
        scale.add_(epsilon).rsqrt_()
        ctx.save_for_backward(rows, weight, scale)
        return (rows * scale).mul_(weight).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, scale = ctx.saved_tensors
        grad = grads[0].reshape(rows.shape)
        product = grad * rows
        grad_weight = (scale.T @ product).view(-1) if ctx.needs_input_grad[1] else None
        pull = (product @ weight)[:, None].mul_(scale.pow(3)).div_(-rows.shape[-1])
        grad_rows = torch.mul(grad, weight, out=product).mul_(scale).addcmul_(rows, pull)
        return grad_rows.view(grads[0].shape), grad_weight, None


class _GatedMLP(torch.autograd.Function):
    """y = (silu(x G^T) * (x U^T)) D^T of rows x [N, H]; x and both inputs of the product are kept, the rest made again.

    With g = x G^T, u = x U^T, a = dL/dy D:   du = a silu(g),   dg = a u silu'(g),   dx = dg G + du U
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
        gate, up = x @ gate_weight.T, x @ up_weight.T
        ctx.save_for_backward(x, gate, up, gate_weight, up_weight, down_weight)
        return F.silu(gate).mul_(up) @ down_weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, *weights = ctx.saved_tensors
        gate_weight, up_weight, down_weight = weights
        wanted = zip(weights, ctx.needs_input_grad[1:], strict=True)
        grad_gate_weight, grad_up_weight, grad_down_weight = (
            torch.zeros_like(weight) if needed else None for weight, needed in wanted
        )
        grad_x = torch.empty_like(x)
        for rows in zip(*(whole.split(BLOCK) for whole in (x, gate, up, grads[0], grad_x)), strict=True):
            x_, gate_, up_, grad, grad_x_ = rows
            activated, grad_hidden = F.silu(gate_), grad @ down_weight
            if grad_down_weight is not None:
                grad_down_weight.addmm_(grad.T, activated * up_)
            grad_up = activated.mul_(grad_hidden)
            grad_gate = torch.ops.aten.silu_backward(grad_hidden.mul_(up_), gate_)
            torch.mm(grad_gate, gate_weight, out=grad_x_).addmm_(grad_up, up_weight)
            if grad_gate_weight is not None:
                grad_gate_weight.addmm_(grad_gate.T, x_)
            if grad_up_weight is not None:
                grad_up_weight.addmm_(grad_up.T, x_)
        return grad_x, grad_gate_weight, grad_up_weight, grad_down_weight


class _RotatedLinear(torch.autograd.Function):
    """q = x W^T + b of hidden states x [B, T, H], in heads [B, T, heads, D] that are turned by their position:

    q' = q cos + (-q_2, q_1) sin for the halves (q_1, q_2) of a head   (Su et al. 2021, arXiv 2104.09864)

    Nothing but x is kept; the gradient is turned back by the transpose.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cos: Tensor, signed: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, cos, signed)
        return _turn(F.linear(x, weight, bias), cos, signed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, signed = ctx.saved_tensors
        half = cos.shape[-1] // 2
        turned = (grads[0] * cos).addcmul_(grads[0].roll(half, -1), signed.roll(half, -1))
        rows = turned.reshape(-1, len(weight))
        grad_weight = rows.T @ x.reshape(len(rows), -1) if ctx.needs_input_grad[1] else None
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return (rows @ weight).view(x.shape), grad_weight, grad_bias, None, None


def _by_head(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T, 1, D] each: cosines, and sines with the sign of (-q_2, q_1)."""
    first, second = sin.chunk(2, dim=-1)
    return cos[..., None, :], torch.cat([-first, second], dim=-1)[..., None, :]


def _turn(projected: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
    """[B, T, heads * D] in place -> [B, T, heads, D]"""
    heads = projected.unflatten(-1, (-1, cos.shape[-1]))
    swapped = heads.roll(cos.shape[-1] // 2, -1)
    return heads.mul_(cos).addcmul_(swapped, signed)
