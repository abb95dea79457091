"""`kill -9` in every stage of every round: the same command goes on, and what it leaves is byte-identical.

One chain of attempts covers all kill points: each attempt is killed at the next point, the last one ends. Every
artifact is hit three times or more: in the middle of its work, before its manifest, and when all is written but the
rename that commits it.
"""

import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sail.core.artifacts import Artifact
from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    committed,
    digests,
    kill_at,
    linked,
    planned,
    run_afresh,
    small_config,
    store_of,
    write_config,
)

_IN_THE_MIDDLE = {
    "data": ["os.rename .*/verdicts.parquet"],
    "prompts": ["os.rename .*/held_out.parquet"],
    "reward": ["open .*/metrics.jsonl w", "open .*/model/tokenizer_config.json w"],
    "samples": ["os.rename .*/groups-00001.parquet"],
    "scores": ["os.rename .*/scores-00000.parquet"],
    "logps": ["os.rename .*/logps.parquet"],
    "pairs": ["os.rename .*/pairs.parquet"],
    "checkpoint": [
        "os.rename .*/scratch/step-00000001",  # the first step checkpoint is written, not committed
        "open .*/scratch/tmp/position.json w",  # the next, half written
        "shutil.rmtree .*/scratch/step-00000002",  # the third is committed, the second still there
        "open .*/model/config.json w",  # the final weights, half written
    ],
    "evaluation": ["os.rename .*/examples.json"],
}


@dataclass(frozen=True)
class KillPoint:
    artifact: Artifact
    at: dict[str, Any]

    @property
    def partial(self) -> Path:
        return self.artifact.path.with_name(f"{self.artifact.id}.partial")


def kill_points(artifacts: list[Artifact]) -> Iterator[KillPoint]:
    """In the order a run comes past them, however often it has been killed before."""
    for artifact in artifacts:
        inside = f"{artifact.id}.partial"
        for pattern in _IN_THE_MIDDLE[artifact.stage]:
            yield KillPoint(artifact, kill_at(pattern.replace(".*", f".*/{inside}.*")))
        yield KillPoint(artifact, kill_at(f"os.rename .*/{inside}/.manifest.json.tmp"))
        if artifact.stage == "checkpoint":  # one file of the last step checkpoint is gone, the others are there
            yield KillPoint(artifact, kill_at("os.remove", nth=2, after=f"shutil.rmtree .*/{inside}/.scratch.tmp"))
        yield KillPoint(artifact, kill_at(f"os.rename .*/{inside} .*/{artifact.id}$"))


@pytest.fixture(scope="module")
def config(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "killed.yaml", small_config(testbed))


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "killed"
    done = run_afresh("run", config, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.err
    return out


def assert_same_outcome(out: Path, uninterrupted: Path) -> None:
    assert digests(store_of(out)) == digests(store_of(uninterrupted))
    assert linked(out) == linked(uninterrupted)
    assert (out / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert not [id for id, artifact in committed(store_of(out)).items() if artifact.damaged_files()]


def test_the_chain_covers_every_stage_of_both_rounds(config: Path, uninterrupted: Path) -> None:
    artifacts = planned(config, [], uninterrupted)
    assert {artifact.stage for artifact in artifacts} == set(_IN_THE_MIDDLE)
    assert {artifact.id for artifact in artifacts} == set(committed(store_of(uninterrupted)))
    of_rounds = [artifact.stage for artifact in artifacts if artifact.stage in ("samples", "pairs", "checkpoint")]
    assert of_rounds.count("checkpoint") == 2 and of_rounds.count("samples") == 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_in_every_stage_ends_byte_identical(
    config: Path, uninterrupted: Path, sail: Zygote, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    artifacts = planned(config, [], out)
    for point in kill_points(artifacts):
        done = sail.run("run", config, "--out", out, cwd=tmp_path, at=point.at)
        where = f"{point.artifact.id} at {point.at}"
        assert done.returncode == -signal.SIGKILL, f"{where}: {done.out[-1000:]} {done.err[-3000:]}"
        assert point.partial.is_dir(), where
        before = {artifact.id for artifact in artifacts[: artifacts.index(point.artifact)]}
        assert set(committed(store_of(out))) == before, where
    assert sail.run("run", config, "--out", out, cwd=tmp_path).returncode == 0
    assert_same_outcome(out, uninterrupted)


def test_a_run_killed_at_random_moments_ends_byte_identical(
    config: Path, uninterrupted: Path, sail: Zygote, tmp_path: Path
) -> None:
    """From outside, wherever the process happens to be: in native code, in the middle of a file."""
    moments, out = random.Random(7), tmp_path / "killed"
    endings = []
    for _ in range(6):
        attempt = sail.start("run", config, "--out", out, cwd=tmp_path)
        timer = threading.Timer(moments.uniform(0.3, 1.5), attempt.send, [signal.SIGKILL])
        timer.start()
        endings.append(attempt.wait().returncode)
        timer.cancel()
    assert endings[0] == -signal.SIGKILL and set(endings) <= {-signal.SIGKILL, 0}
    assert sail.run("run", config, "--out", out, cwd=tmp_path).returncode == 0
    assert_same_outcome(out, uninterrupted)


def test_an_adapter_killed_between_steps_ends_byte_identical(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    """The fresh process has another hash seed, so an order taken from a set would show."""
    settings = small_config(testbed, evaluation=NO_EVALUATION, lora={"r": 4, "alpha": 8, "dropout": 0.1})
    config, out, whole = write_config(tmp_path / "c.yaml", settings), tmp_path / "a" / "run", tmp_path / "b" / "run"
    rounds = [artifact.id for artifact in planned(config, [], out) if artifact.stage == "checkpoint"]
    for id in rounds:
        at = kill_at(f"shutil.rmtree .*/{id}.partial/scratch/step-00000002")
        assert sail.run("run", config, "--out", out, cwd=tmp_path, at=at).returncode == -signal.SIGKILL
    assert run_afresh("run", config, "--out", out, cwd=tmp_path).returncode == 0
    assert sail.run("run", config, "--out", whole, cwd=tmp_path).returncode == 0
    assert_same_outcome(out, whole)
