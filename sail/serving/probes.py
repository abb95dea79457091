"""Fixed questions asked of the server after every change of weights."""

import random
from dataclasses import dataclass
from pathlib import Path

from sail.core.seeds import derive_seed
from sail.serving.model_files import read_model_config

_NUM_PROBES, _NUM_TOKENS = 4, 8
_LONGEST_PROMPT = 2 * 128 + 1  # a prefix-cache block has 128 tokens on CPU, 16 on GPU


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt and how many greedy tokens to ask for."""

    prompt_ids: tuple[int, ...]
    max_tokens: int


def probes_for(model_dir: Path, max_model_len: int) -> tuple[Probe, ...]:
    """Random prompts over the model's vocabulary, the same for every version of a policy.

    They fill at least two blocks of the prefix cache where the context allows it, and always ask under one
    cache salt: had a reset not happened, keys and values of the old weights would be found and the answers
    differ.
    """
    vocab_size = int(read_model_config(model_dir)["vocab_size"])
    max_tokens = min(_NUM_TOKENS, max_model_len - 1)
    length = min(_LONGEST_PROMPT, max_model_len - max_tokens)
    draw = random.Random(derive_seed("serving probes", vocab_size))
    prompts = [tuple(draw.randrange(vocab_size) for _ in range(length)) for _ in range(_NUM_PROBES)]
    return tuple(Probe(prompt, max_tokens) for prompt in prompts)
