"""Refreshes through a real vLLM server: whole weights through memory, a kill in the middle, equal weights."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

from sail import load_run
from sail.core.atomic import tree_files
from sail.serving.policy_server import PolicyServer
from tests.loops.running import NO_EVALUATION, Zygote, kill_at, store_of, weights, write_config
from tests.serving_fixtures import VOCAB_SIZE, TinyPolicy, serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
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


def config(folder: Path, policy: TinyPolicy, url: str) -> Path:
    """SAIL-DP of a random policy through a server that is there: four steps, four refreshes."""
    lines = [json.dumps({"prompt": f"what is {index} and {2 * index}?"}) + "\n" for index in range(8)]
    (folder / "prompts.jsonl").write_text("".join(lines))
    settings: dict[str, Any] = {
        "model_name_or_path": str(that_reads(policy, folder / "policy")),
        "data": {"prompts": {"path": str(folder / "prompts.jsonl")}},
        "prompts": {"from": "prompts", "per_round": 8},
        "num_rounds": 1,
        "steps_per_generation": 1,
        "routes": {"online": {"responses": "policy", "labels": "policy", "sail_coef": 0.1}},
        "loss": {"type": "dpo", "beta": 0.1},
        "update": {"steps": 4, "train_batch_size": 2, "learning_rate": 1e-3, "save_steps": 2},
        "generation": {"engine": "vllm", "max_completion_length": 16},
        "vllm": {"mode": "external", "server_urls": [url], "concurrency": 8},
        "hygiene": {"truncated": "keep", "ties": "keep"},
        "evaluation": NO_EVALUATION,
    }
    return write_config(folder / "c.yaml", settings)


def test_a_round_killed_between_refreshes_of_a_server_ends_with_equal_weights(
    policy_server: PolicyServer, tiny_policies: dict[str, TinyPolicy], sail: Zygote, tmp_path: Path
) -> None:
    client = serve(policy_server, tiny_policies["untied-a"])
    starts, path = policy_server.num_starts, config(tmp_path, tiny_policies["untied-a"], client.base_url)
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    try:
        done = sail.run("run", path, "--out", whole, cwd=tmp_path)
        assert done.returncode == 0, done.err
        at = kill_at("os.rename .*/segments/00003/samples-.*.partial")
        assert sail.run("run", path, "--out", killed, cwd=tmp_path, at=at).returncode == -signal.SIGKILL
        on_disk = {file: file.stat().st_size for file in tree_files(store_of(killed)) if not file.is_symlink()}
        assert not [file for file in on_disk if file.suffix == ".safetensors" and "step-" not in str(file)]
        done = sail.run("run", path, "--out", killed, cwd=tmp_path)
        assert done.returncode == 0 and "resuming at step 2" in done.out, done.err
    finally:
        policy_server.policy = None  # it was given other weights behind its owner's back
        policy_server.replicas[0].held.model_version = None
    assert weights(killed) == weights(whole)
    synced = [json.loads(line) for line in (whole / "logs/attempt-1/weight-sync.jsonl").read_text().splitlines()]
    assert [entry["way"] for entry in synced] == ["reload from disk"] * 4
    assert max(entry["max_abs_nats"] for entry in synced) < 1e-3
    drawn = load_run(whole).round(0).samples("online")
    assert len({sample["policy_version"] for group in drawn["samples"] for sample in group}) == 4
    serve(policy_server, tiny_policies["untied-b"])
    assert policy_server.num_starts == starts, "no restart, here or afterwards"
