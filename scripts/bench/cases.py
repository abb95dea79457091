"""What is measured: model shapes and batches of token ids, seeded, on any device."""

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sail.policy.rows import Row


class Regime(NamedTuple):
    """Lowest and highest number of tokens."""

    prompt: tuple[int, int]
    response: tuple[int, int]


REGIMES = {
    "ragged": Regime((64, 192), (64, 256)),
    "long-prompt": Regime((300, 500), (32, 128)),
    "long-response": Regime((64, 128), (256, 512)),
    "dry": Regime((4, 12), (4, 16)),
}


@dataclass(frozen=True)
class Case:
    """A random Llama and the batches it trains on."""

    name: str
    regime: str
    vocab: int
    hidden: int
    layers: int
    pairs: int
    tied: bool = False
    device: str = "cpu"
    dtype: str = "fp32"  # or bf16: autocast over fp32 weights

    @property
    def bf16(self) -> bool:
        return self.dtype == "bf16"


CASES = {
    case.name: case
    for case in (
        Case("v8k/ragged", "ragged", vocab=8192, hidden=384, layers=6, pairs=8),
        Case("v8k/long-prompt", "long-prompt", vocab=8192, hidden=384, layers=6, pairs=4),
        Case("v8k/long-response", "long-response", vocab=8192, hidden=384, layers=6, pairs=4),
        Case("v64k/ragged", "ragged", vocab=65536, hidden=256, layers=8, pairs=2, tied=True),
    )
}
DRY = Case("dry", "dry", vocab=300, hidden=64, layers=2, pairs=3)

Ids = tuple[int, ...]


class Pair(NamedTuple):
    """A prompt with two responses, and their log-probs under the reference where they are stored."""

    prompt: Ids
    chosen: Ids
    rejected: Ids
    ref_chosen: float = float("nan")
    ref_rejected: float = float("nan")


def make_pairs(case: Case, seed: int, count: int | None = None) -> list[Pair]:
    draw, regime = random.Random(seed), REGIMES[case.regime]

    def tokens(limits: tuple[int, int]) -> Ids:
        return tuple(draw.randrange(2, case.vocab) for _ in range(draw.randint(*limits)))

    return [
        Pair(tokens(regime.prompt), tokens(regime.response), tokens(regime.response))
        for _ in range(count or case.pairs)
    ]


def rows_of(pairs: list[Pair]) -> list[Row]:
    """All chosen ones, then all rejected ones."""
    return [Row(pair.prompt, pair.chosen) for pair in pairs] + [Row(pair.prompt, pair.rejected) for pair in pairs]


def with_scores(pairs: list[Pair], ref_logps: list[float]) -> list[Pair]:
    """The pairs with the reference's log-probs of their rows."""
    chosen, rejected = ref_logps[: len(pairs)], ref_logps[len(pairs) :]
    return [
        pair._replace(ref_chosen=won, ref_rejected=lost)
        for pair, won, lost in zip(pairs, chosen, rejected, strict=True)
    ]


def make_model(case: Case, seed: int) -> Any:
    """The policy (seed 0) or the reference (seed 1) in float32: two models, so that no log-ratio is zero."""
    torch.manual_seed(seed)
    heads = max(1, case.hidden // 64)
    config = LlamaConfig(
        vocab_size=case.vocab, hidden_size=case.hidden, num_hidden_layers=case.layers,
        intermediate_size=max(64, case.hidden * 8 // 3 // 64 * 64), num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=1024, tie_word_embeddings=case.tied,
        bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.device(case.device):  # drawn there: a billion weights take minutes on one core
        return LlamaForCausalLM(config).train()
