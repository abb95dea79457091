"""A tiny random policy on disk, its trainer-side log-probs, and one vLLM server for all tests of a session."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from sail.core.run_settings import VllmSettings
from sail.serving.policy_server import PolicyServer

VOCAB_SIZE = 320
EOS, STOP = 2, 7
CONTEXT = 512
SETTINGS = VllmSettings(kv_cache_gib=0.25, max_num_seqs=64, request_timeout_s=60.0, start_timeout_s=300.0)


@dataclass(frozen=True)
class TinyPolicy:
    """A model directory and the same model in transformers."""

    path: Path
    model: Qwen2ForCausalLM

    def score(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        """log pi of each response token, in float32 by a plain transformers forward."""
        return response_logprobs(self.model, prompt_ids, response_ids)


def make_tiny_policy(path: Path, *, seed: int, tied: bool, eos_bias: float = 0.0) -> TinyPolicy:
    """A seeded two-layer Qwen2 (head_dim 32, float32) with a word-level tokenizer, saved to `path`."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=EOS, pad_token_id=0, initializer_range=0.3, dtype=torch.float32,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    model.save_pretrained(path)
    words = {word: index for index, word in enumerate(["<pad>", "<unk>", "<eos>", *map("w{}".format, range(3, VOCAB_SIZE))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(path)
    return TinyPolicy(path, model)


def response_logprobs(
    model: torch.nn.Module, prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> list[float]:
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    with torch.no_grad():
        logps_1TV = torch.log_softmax(model(input_ids=ids).logits.float(), dim=-1)
    targets = ids[0, len(prompt_ids):]
    return logps_1TV[0, len(prompt_ids) - 1 : -1].gather(1, targets[:, None])[:, 0].tolist()
