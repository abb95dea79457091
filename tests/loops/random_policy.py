"""SAIL-DP of a tiny random policy, through a vLLM server that is there."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

from loops.documents import merge
from tests.loops.running import NO_EVALUATION, write_config
from tests.serving_fixtures import VOCAB_SIZE, TinyPolicy

_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def that_reads(policy: TinyPolicy, folder: Path) -> Path:
    """The policy with a tokenizer for text: a token a byte, and words for the rest of its vocabulary."""
    shutil.copytree(policy.path, folder)
    pieces = ["<pad>", "<unk>", "<eos>", *sorted(ByteLevel.alphabet())]
    pieces += [f"w{index}" for index in range(len(pieces), VOCAB_SIZE)]
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    tokenizer = Qwen2Tokenizer({piece: index for index, piece in enumerate(pieces)}, [], **special)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def sail_dp(folder: Path, policy: TinyPolicy, url: str, changes: dict[str, Any]) -> Path:
    """A config in the folder, eight prompts a round; `changes` name rounds and steps."""
    lines = [json.dumps({"prompt": f"what is {index} and {2 * index}?"}) + "\n" for index in range(8)]
    (folder / "prompts.jsonl").write_text("".join(lines))
    settings: dict[str, Any] = {
        "model_name_or_path": str(that_reads(policy, folder / "policy")),
        "data": {"prompts": {"path": str(folder / "prompts.jsonl")}},
        "prompts": {"from": "prompts", "per_round": 8},
        "routes": {"online": {"responses": "policy", "labels": "policy", "sail_coef": 0.1}},
        "loss": {"type": "dpo", "beta": 0.1},
        "update": {"learning_rate": 1e-3},
        "generation": {"engine": "vllm", "max_completion_length": 16},
        "vllm": {"mode": "external", "server_urls": [url], "concurrency": 8},
        "hygiene": {"truncated": "keep", "ties": "keep"},
        "evaluation": NO_EVALUATION,
    }
    return write_config(folder / "c.yaml", merge(settings, changes))
