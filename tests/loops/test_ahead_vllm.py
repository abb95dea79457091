"""Samples of the next round drawn by a real server while a round trains: the same bytes, however it goes."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sail.core.artifacts import Artifact
from sail.core.store import Store
from sail.serving.policy_server import PolicyServer
from sail.serving.processes import descendants, send_signal
from tests.loops.random_policy import sail_dp
from tests.loops.running import (
    Zygote,
    committed,
    digests,
    kill_at,
    linked,
    planned,
    stop_at,
    store_of,
)
from tests.serving_fixtures import TinyPolicy, serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
_STEPS = 30  # so many that Ctrl-C comes before the last


@pytest.fixture(scope="module")
def config(
    policy_server: PolicyServer, tiny_policies: dict[str, TinyPolicy], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """SAIL-DP of a random policy, three rounds, through a server that is there."""
    folder, policy = tmp_path_factory.mktemp("ahead"), tiny_policies["untied-a"]
    changes = {
        "num_rounds": 3,
        "round": {"staleness": 1},
        "importance_sampling": {"mode": "truncate"},
        "update": {"steps": _STEPS, "train_batch_size": 8, "save_steps": 5},
        "generation": {"shard_size": 2},
        "vllm": {"max_retries": 0},
    }
    yield sail_dp(folder, policy, serve(policy_server, policy).base_url, changes)
    policy_server.policy = None  # it was given other weights behind its owner's back
    policy_server.replicas[0].held.model_version = None


@pytest.fixture(scope="module")
def whole(config: Path, sail: Zygote) -> Path:
    out = config.parent / "whole" / "run"
    done = sail.run("run", config, "--out", out, cwd=config.parent)
    assert done.returncode == 0, done.err
    return out


def rounds(config: Path, stage: str, out: Path) -> list[Artifact]:
    return [one for one in planned(config, [], out) if one.stage == stage]


def assert_same(out: Path, whole: Path) -> None:
    assert digests(store_of(out)) == digests(store_of(whole))
    assert linked(out) == linked(whole)


@contextmanager
def held_up(server: PolicyServer) -> Iterator[None]:
    """A server that answers nothing."""
    assert server.replicas[0].server is not None
    processes = descendants(server.replicas[0].server.pid)
    send_signal(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(processes, signal.SIGCONT)


def wait_until_there(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120.0
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.05)


def test_a_round_trains_while_a_server_has_still_to_draw_the_next_rounds_samples(
    whole: Path, config: Path, policy_server: PolicyServer, sail: Zygote, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    samples, checkpoint = rounds(config, "samples", out)[1], rounds(config, "checkpoint", out)[0]
    attempt = sail.start("run", config, "--out", out, cwd=tmp_path, at=stop_at(f"os.mkdir .*/{samples.id}.partial"))
    attempt.wait_until_stopped()
    with held_up(policy_server):
        attempt.send(signal.SIGCONT)
        wait_until_there(store_of(out), f"{checkpoint.id}.partial/scratch/step-*")
        assert not samples.committed and not list(store_of(out).glob(f"{samples.id}.partial/groups-*"))
    done = attempt.wait()
    assert done.returncode == 0, done.err
    assert_same(out, whole)
    synced = (out / "logs/attempt-1/weight-sync.jsonl").read_text().splitlines()
    assert len(synced) == 2, "the start and the first checkpoint, each once: the last round learns from its samples"


def test_interrupted_killed_and_failing_on_the_way_it_ends_byte_identical(
    whole: Path, config: Path, sail: Zygote, tmp_path: Path
) -> None:
    """Round 1's samples are begun, gone on with and finished beside round 0's update, round 2's drawn afterwards."""
    out = tmp_path / "run"
    _, first, second = rounds(config, "samples", out)
    checkpoints = [one.id for one in rounds(config, "checkpoint", out)]

    ctrl_c = kill_at(f"os.mkdir .*/{first.id}.partial") | {"signal": signal.SIGINT}
    assert sail.run("run", config, "--out", out, cwd=tmp_path, at=ctrl_c).returncode == 130
    assert not set(checkpoints) & set(committed(store_of(out))), "it came while round 0 trained"
    kill = kill_at(f"os.rename .*/{first.id}.partial/.*groups-00001.parquet")
    assert sail.run("run", config, "--out", out, cwd=tmp_path, at=kill).returncode == -signal.SIGKILL

    with Store(store_of(out)).locked(second.id):
        failed = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert "reusing 4 samples of 2 prompts" in failed.out
    assert failed.returncode == 2 and f"another process is building {second.id}" in failed.error
    assert "the run ends when this one is trained" in failed.err
    assert set(checkpoints) & set(committed(store_of(out))) == set(checkpoints[:2]), "round 1's update is kept"
    assert "round 0" in failed.out and "round 1" not in failed.out, "told then, not when round 2 wants them"

    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert done.returncode == 0 and done.announced[1] == {"samples": 1, "logps": 3, "pairs": 1, "checkpoint": 1}
    assert_same(out, whole)
