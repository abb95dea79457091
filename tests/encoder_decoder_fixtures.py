"""A tiny random T5 on disk with a Unigram tokenizer, as T5's own: </s> ends a text, <pad> starts a response."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5Tokenizer

START_ID, EOS_ID = 0, 1


def make_tiny_t5(path: Path, words: list[str], *, seed: int = 1, tied: bool = True) -> Any:
    """Each of `words` is one piece. Saved as its makers do: config, generation config, no chat template."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0), *((f"▁{word}", -3.0) for word in words)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=2)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        relative_attention_num_buckets=8, tie_word_embeddings=tied, n_positions=16, initializer_factor=2.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).eval()
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(len(tokenizer), 32))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model
