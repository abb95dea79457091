"""The default testbed, as a consumer meets it."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sail.core.records import Example
from sail.testbed.contents import one_thread
from sail.testbed.gold import hump
from sail.testbed.sampling import sample_responses

NUM_PROMPTS, NUM_SAMPLES = 150, 16


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def content(messages: list[dict[str, str]]) -> str:
    (message,) = messages
    return message["content"]


@pytest.fixture(scope="module")
def samples(testbed: Path) -> list[Example]:
    """Sixteen samples of the SFT model for each of 150 free prompts, grouped by prompt."""
    model = AutoModelForCausalLM.from_pretrained(testbed / "sft", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(testbed / "sft", local_files_only=True)
    prompts = [content(row["prompt"]) for row in read(testbed / "prompts.jsonl")[:NUM_PROMPTS]]
    with one_thread():  # so small a model is several times slower on two threads that others use too
        return sample_responses(model, tokenizer, [prompt for prompt in prompts for _ in range(NUM_SAMPLES)], 5)


def best_of(rewards: list[float], n: int) -> float:
    return statistics.fmean(max(rewards[start : start + n]) for start in range(0, len(rewards), n))


def test_the_model_is_complete_small_fp32_and_fit_for_vllm_on_cpu(testbed: Path):
    model = AutoModelForCausalLM.from_pretrained(testbed / "sft", local_files_only=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.dtype, model.config.head_dim, model.config.vocab_size) == (torch.float32, 32, 128)
    assert 100_000 < model.num_parameters() < 300_000
    assert not model.config.tie_word_embeddings
    settings = model.generation_config
    assert (settings.temperature, settings.top_k, settings.top_p, settings.eos_token_id) == (1.0, 0, 1.0, 2)


def test_the_sft_model_leaves_room_to_improve(samples: list[Example]):
    rewards = hump(samples)
    assert 0.2 < statistics.fmean(rewards) < 0.7
    assert best_of(rewards, 4) > 1.6
    assert best_of(rewards, 16) > 2.6
    assert statistics.fmean(sample.finished for sample in samples) > 0.97
    assert len({sample.response for sample in samples}) > 0.9 * len(samples)


def test_the_human_agrees_with_the_gold_reward_four_times_in_five(testbed: Path):
    rows = read(testbed / "prefs.jsonl")
    sides = {side: hump([seen(row, side) for row in rows]) for side in ("chosen", "rejected")}
    gaps = [chosen - rejected for chosen, rejected in zip(*sides.values(), strict=True)]
    assert 0.75 < sum(gap > 0 for gap in gaps) / sum(gap != 0 for gap in gaps) < 0.85


def seen(row: dict[str, Any], side: str) -> Example:
    """From the text alone an end can only be guessed at: it is there when the limit was not reached."""
    response = content(row[side])
    return Example(tuple(row["prompt"]), response, len(response.split()) < 24)


def test_the_files_have_the_promised_rows_and_no_reward(testbed: Path):
    keys = {
        "prompts.jsonl": (3000, {"prompt"}),
        "prefs.jsonl": (2000, {"prompt", "chosen", "rejected"}),
        "prefs_heldout.jsonl": (300, {"prompt", "chosen", "rejected"}),
        "sft.jsonl": (2000, {"prompt", "completion"}),
    }
    for name, (count, fields) in keys.items():
        rows = read(testbed / name)
        assert len(rows) == count
        assert all(set(row) == fields for row in rows)


def test_pairs_differ_and_their_prompts_are_in_no_other_file_of_pairs_or_prompts(testbed: Path):
    names = ("prefs.jsonl", "prefs_heldout.jsonl", "prompts.jsonl")
    tables = [read(testbed / name) for name in names]
    prompts = [content(row["prompt"]) for table in tables for row in table]
    assert len(prompts) == len(set(prompts))
    assert all(row["chosen"] != row["rejected"] for table in tables[:2] for row in table)
