"""Refreshes through a real vLLM server: whole weights through memory, a kill in the middle, equal weights."""

import json
import signal
from pathlib import Path

import pytest

from sail import load_run
from sail.core.atomic import tree_files
from sail.serving.policy_server import PolicyServer
from tests.loops.random_policy import sail_dp
from tests.loops.running import Zygote, kill_at, store_of, weights
from tests.serving_fixtures import TinyPolicy, serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]


def config(folder: Path, policy: TinyPolicy, url: str) -> Path:
    """Four steps, four refreshes."""
    update = {"steps": 4, "train_batch_size": 2, "save_steps": 2}
    return sail_dp(folder, policy, url, {"num_rounds": 1, "steps_per_generation": 1, "update": update})


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
