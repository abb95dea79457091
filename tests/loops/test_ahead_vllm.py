"""Samples of the next round drawn by a real server while a round trains: the same bytes, however it goes."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sail.core.artifacts import Artifact
from sail.core.store import Store
from sail.serving.policy_server import PolicyServer
from tests.loops.running import (
    NO_EVALUATION,
    Done,
    Zygote,
    committed,
    digests,
    kill_at,
    linked,
    planned,
    store_of,
    write_config,
)
from tests.loops.test_refresh_vllm import that_reads
from tests.serving_fixtures import TinyPolicy, serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
_STEPS = 30  # so many that a round trains for longer than the server draws


@pytest.fixture(scope="module")
def config(
    policy_server: PolicyServer, tiny_policies: dict[str, TinyPolicy], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """SAIL-DP of a random policy, three rounds, through a server that is there."""
    folder, policy = tmp_path_factory.mktemp("ahead"), tiny_policies["untied-a"]
    lines = [json.dumps({"prompt": f"what is {index} and {2 * index}?"}) + "\n" for index in range(8)]
    (folder / "prompts.jsonl").write_text("".join(lines))
    settings: dict[str, Any] = {
        "model_name_or_path": str(that_reads(policy, folder / "policy")),
        "data": {"prompts": {"path": str(folder / "prompts.jsonl")}},
        "prompts": {"from": "prompts", "per_round": 8},
        "num_rounds": 3,
        "round": {"staleness": 1},
        "routes": {"online": {"responses": "policy", "labels": "policy", "sail_coef": 0.1}},
        "loss": {"type": "dpo", "beta": 0.1},
        "importance_sampling": {"mode": "truncate"},
        "update": {"steps": _STEPS, "train_batch_size": 8, "learning_rate": 1e-3, "save_steps": 5},
        "generation": {"engine": "vllm", "max_completion_length": 16, "shard_size": 2},
        "vllm": {
            "mode": "external", "server_urls": [serve(policy_server, policy).base_url], "concurrency": 8,
            "max_retries": 0,
        },
        "hygiene": {"truncated": "keep", "ties": "keep"},
        "evaluation": NO_EVALUATION,
        "log_interval_s": 1e-3,
    }  # fmt: skip
    yield write_config(folder / "c.yaml", settings)
    policy_server.policy = None  # it was given other weights behind its owner's back
    policy_server.replicas[0].held.model_version = None


@pytest.fixture(scope="module")
def uninterrupted(config: Path, sail: Zygote) -> Done:
    done = sail.run("run", config, "--out", whole(config), cwd=config.parent)
    assert done.returncode == 0, done.err
    return done


def whole(config: Path) -> Path:
    return config.parent / "whole" / "run"


def rounds(config: Path, stage: str) -> list[Artifact]:
    return [one for one in planned(config, [], whole(config)) if one.stage == stage]


def place(told: list[str], artifact: Artifact, text: str) -> int:
    """The first line about an artifact that has these words."""
    about = f"{artifact.stage}  {artifact.key[:8]}"
    return next(index for index, line in enumerate(told) if about in line and text in line)


def test_the_next_rounds_samples_are_drawn_while_a_round_trains(uninterrupted: Done, config: Path) -> None:
    told = uninterrupted.out.splitlines()
    for drawn, trained in zip(rounds(config, "samples")[1:], rounds(config, "checkpoint"), strict=False):
        assert place(told, trained, "loss") < place(told, drawn, " tokens"), "a step before the last sample"
        assert place(told, drawn, "starting") < place(told, trained, " steps"), "the first sample before the last step"
    synced = (whole(config) / "logs/attempt-1/weight-sync.jsonl").read_text().splitlines()
    assert len(synced) == 2, "the start and the first checkpoint, each once: the last round learns from its samples"


def test_interrupted_killed_and_failing_on_the_way_it_ends_byte_identical(
    uninterrupted: Done, config: Path, sail: Zygote, tmp_path: Path
) -> None:
    """Round 1's samples are begun, gone on with and finished beside round 0's update, round 2's drawn afterwards."""
    out, [_, first, second] = tmp_path / "run", rounds(config, "samples")
    checkpoints = [one.id for one in rounds(config, "checkpoint")]

    ctrl_c = kill_at(f"os.mkdir .*/{first.id}.partial") | {"signal": signal.SIGINT}
    assert sail.run("run", config, "--out", out, cwd=tmp_path, at=ctrl_c).returncode == 130
    kill = kill_at(f"os.rename .*/{first.id}.partial/.*groups-00001.parquet")
    assert sail.run("run", config, "--out", out, cwd=tmp_path, at=kill).returncode == -signal.SIGKILL
    assert not set(checkpoints) & set(committed(store_of(out))), "both came while round 0 trained"

    with Store(store_of(out)).locked(second.id):
        failed = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert "reusing 4 samples of 2 prompts" in failed.out
    assert failed.returncode == 2 and f"another process is building {second.id}" in failed.error
    assert "the run ends when this one is trained" in failed.err
    assert set(checkpoints) & set(committed(store_of(out))) == set(checkpoints[:2]), "round 1's update is kept"
    assert "round 0" in failed.out and "round 1" not in failed.out, "told then, not when round 2 wants them"

    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert done.returncode == 0 and done.announced[1] == {"samples": 1, "logps": 3, "pairs": 1, "checkpoint": 1}
    assert digests(store_of(out)) == digests(store_of(whole(config)))
    assert linked(out) == linked(whole(config))
