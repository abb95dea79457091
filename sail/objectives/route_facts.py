"""What the rules need to know of a route, and what they answer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RouteFacts:
    """One route of a run, reduced to what decides whether its gradient is right. Defaults are the harmless ones."""

    loss: str
    """a name or alias of LOSSES"""
    responses_from_policy: bool
    """some response of the route is drawn from the policy that is being trained"""
    labels_by: Literal["others", "policy", "order", "none"]
    responses_from_reference: bool = False
    """some response is drawn from the reference"""
    greedy: bool = False
    """some response is the policy's likeliest one: no draw from it, and one a prompt"""
    sources: int = 1
    """origins of its responses: several where they meet by prompt"""
    labels_as: Literal["", "preference", "thumbs", "score", "win_rate"] = ""
    """what the labels say of single responses; empty where nothing is said or asked"""
    filtered: bool = False
    """a filter keeps some of the responses"""
    has_value: bool = False
    """components.value: a value network"""
    has_sae: bool = False
    """components.sae: a sparse autoencoder"""
    has_prompt_tag: bool = False
    """components.prompt_tag: conditional alignment"""
    mode: Literal["hard", "sampled", "soft"] = "hard"
    when: Literal["fresh", "frozen"] = "fresh"
    """of labels by the policy: computed at the current parameters, or stored once"""
    sail_coef: float = 0.0
    loss_params: Mapping[str, float] = field(default_factory=dict)
    """what differs from the loss's defaults"""
    num_tokens: float = 256.0
    """the length a response may have, for losses that average over it"""
    num_generations: int = 2
    keep: Literal["all", "best_worst", "random"] = "all"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """<= 0: off"""
    min_p: float = 0.0
    min_tokens: int = 0
    linear_alignment: bool = False
    """samples of a steered policy on its top-p set"""
    stale: bool = False
    """samples may be older than the policy that trains on them (more than one optimizer step per generation)"""
    own_samples: bool = True
    """all its samples are of this round, and the update starts from the policy that drew them"""
    importance_mode: Literal["sequence_mask", "truncate", "none"] = "sequence_mask"
    importance_apply_to: Literal["all", "score"] = "all"
    policy_is_reference: bool = False
    """the policy that writes frozen labels equals the reference, as in the first round from the base model"""
    filters: bool = False
    """some of what was drawn is left out: truncated and empty samples, of pairs near-ties and identical ones"""
    labels_may_lack: bool = False
    """the labeler may fail or abstain, which leaves the pair or the response out"""


@dataclass(frozen=True)
class Finding:
    """Something a route may not do (refused) or should know (warned), with what to change."""

    level: Literal["refused", "warned"]
    problem: str
    cure: str


def refused(problem: str, cure: str) -> Finding:
    """A finding that stops the run before it starts."""
    return Finding("refused", problem, cure)


def warned(problem: str, cure: str) -> Finding:
    """A finding that is printed and recorded."""
    return Finding("warned", problem, cure)


Rule = Callable[[RouteFacts], Iterator[Finding]]
