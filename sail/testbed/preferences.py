"""The simulated human: compares two samples of the policy by the gold reward, with noise."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sail.core.records import Example
from sail.core.seeds import SeedPart, uniform
from sail.testbed.sampling import sample_responses

Reward = Callable[[Sequence[Example]], Sequence[float]]
_MAX_DRAWS = 20  # of a pair whose two responses keep coming out equal


@dataclass(frozen=True)
class Preference:
    chosen: Example
    rejected: Example


def draw_pairs(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *stream: SeedPart
) -> list[tuple[Example, Example]]:
    """Two independent samples per prompt, in order; a pair of equal texts is drawn again."""
    pairs: dict[str, tuple[Example, Example]] = {}
    for draw_index in range(_MAX_DRAWS):
        missing = [prompt for prompt in prompts if prompt not in pairs]
        if not missing:
            return [pairs[prompt] for prompt in prompts]
        sides = [sample_responses(model, tokenizer, missing, *stream, draw_index, side) for side in ("a", "b")]
        for prompt, a, b in zip(missing, *sides, strict=True):
            if a.response != b.response:
                pairs[prompt] = (a, b)
    raise RuntimeError(f"the policy gave two equal responses {_MAX_DRAWS} times in a row: it has collapsed")


def prefer(pairs: Sequence[tuple[Example, Example]], reward: Reward, tau: float, *stream: SeedPart) -> list[Preference]:
    """Bradley-Terry labels, one draw per prompt: a wins when u < P(a > b) = sigmoid((r_a - r_b) / tau)."""
    rewards_a, rewards_b = reward([a for a, _ in pairs]), reward([b for _, b in pairs])
    preferences = []
    for (a, b), r_a, r_b in zip(pairs, rewards_a, rewards_b, strict=True):
        a_wins = uniform(*stream, a.prompt[-1]["content"]) < _sigmoid((r_a - r_b) / tau)
        preferences.append(Preference(a, b) if a_wins else Preference(b, a))
    return preferences


def agreement(preferences: Sequence[Preference], reward: Reward) -> float:
    """How often the human chose what the gold reward prefers, in [0, 1]; pairs with equal rewards are left out."""
    chosen, rejected = reward([p.chosen for p in preferences]), reward([p.rejected for p in preferences])
    gaps = [r_chosen - r_rejected for r_chosen, r_rejected in zip(chosen, rejected, strict=True)]
    return sum(gap > 0 for gap in gaps) / sum(gap != 0 for gap in gaps)


def _sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), written so that exp() never overflows."""
    return 0.5 * (1 + math.tanh(x / 2))
