"""Linear Alignment (Gao et al. 2024, arXiv 2401.11458): a policy steered at decoding time, without training.

    logits' = (1 + rho) logits(x + principle) - rho logits(x)   on the top-p set of softmax(logits(x + principle) / T)

and -inf elsewhere: one step of policy optimisation from the principled policy, away from the plain one. Both read the
same response; temperature T and cuts of the generation settings come after. The set is that of the authors' experiments
(their demo cuts after combining).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sail.core.errors import UserError
from sail.core.records import Message, Prompt
from sail.core.run_settings import LinearAlignmentSettings
from sail.generation.continuations import Continuation
from sail.policy.chat import prompt_ids


def aligned_logits(principled: Tensor, plain: Tensor, rho: float, top_p: float, temperature: float = 1.0) -> Tensor:
    """logits' [S, V] float64 from the two policies' [S, V]; -inf outside the set. The temperature shapes the set alone.

    The set: the likeliest tokens of the principled policy until their probability reaches top_p, at least one.
    """
    principled, plain = principled.double(), plain.double()
    ordered, order = torch.softmax(principled / temperature, dim=-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    outside |= principled.isneginf()
    return ((1 + rho) * principled - rho * plain).masked_fill(outside, -torch.inf)


class Aligned:
    """Two continuations of one response, with and without the principle, as one."""

    def __init__(
        self, principled: Continuation, plain: Continuation, settings: LinearAlignmentSettings, temperature: float
    ) -> None:
        self.principled, self.plain, self.settings, self.temperature = principled, plain, settings, temperature

    def next_logits(self, banned: Sequence[int] = ()) -> Tensor:
        principled, plain = self.principled.next_logits(banned), self.plain.next_logits(banned)
        return aligned_logits(principled, plain, self.settings.rho, self.settings.top_p, self.temperature)

    def advance(self, tokens: Tensor) -> None:
        self.principled.advance(tokens)
        self.plain.advance(tokens)


def principled_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, principle: str) -> tuple[int, ...]:
    """The prompt's ids with the principle as a system turn, behind the system turn it has."""
    first, *others = prompt.messages
    if first["role"] == "system":
        turns = [Message(role="system", content=f"{first['content']}\n{principle}"), *others]
    else:
        turns = [Message(role="system", content=principle), first, *others]
    ids = prompt_ids(tokenizer, turns)
    if ids == prompt.token_ids:
        raise UserError(
            "the chat template leaves system turns out, so the principle would change nothing",
            where="generation.linear_alignment.principle", cure="Set chat_template: to a file that writes them",
        )  # fmt: skip
    return ids
