"""An untrained T5 for the testbed's language, so that encoder-decoder policies have a testbed too.

    python -m sail.testbed.encoder_decoder OUT_DIR [--seed 0]

It has the testbed's tokenizer and chat template, about as many weights as the testbed's Llama, and knows nothing yet:
an `sft` phase on sft.jsonl teaches it to write reviews, further phases align it. Equal seeds give equal files.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from sail.core.seeds import derive_seed
from sail.policy.loading import quiet_loading
from sail.testbed.settings import MAX_POSITIONS
from sail.testbed.tokenizer import build_tokenizer


def new_t5(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """Random weights, fp32, no dropout; a response starts after PAD, as T5's do."""
    marks: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    marks["decoder_start_token_id"] = marks["pad_token_id"]
    sizes: dict[str, Any] = {
        "d_model": 64, "d_kv": 32, "d_ff": 192, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 16, "n_positions": MAX_POSITIONS, "vocab_size": len(tokenizer),
        "dropout_rate": 0.0, "tie_word_embeddings": False, "dtype": "float32",
    }  # fmt: skip
    config = T5Config(**sizes, **marks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "testbed", "encoder-decoder weights"))
        model = T5ForConditionalGeneration(config)
    # Said in full: generate() would otherwise cut to the 50 likeliest tokens, which is another policy.
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **marks)
    return model


def write_t5(out: Path, seed: int) -> int:
    """Model and tokenizer into `out`; how many weights it has."""
    tokenizer = build_tokenizer(MAX_POSITIONS)
    model = new_t5(tokenizer, seed)
    with quiet_loading():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return int(model.num_parameters())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sail.testbed.encoder_decoder", description=__doc__.split("\n")[0])
    parser.add_argument("out_dir", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(f"wrote {asked.out_dir}: an untrained T5 of {write_t5(asked.out_dir, asked.seed):,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
