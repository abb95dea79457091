"""`kill -9` of a driver with a real vLLM server: the server dies with it, and the same command ends byte-identical."""

import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from sail.core.artifacts import Artifact
from sail.serving.processes import descendants
from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    digests,
    linked,
    planned,
    small_config,
    stop_at,
    store_of,
    write_config,
)

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

_GONE_WITHIN_S = 30.0


class Process(NamedTuple):
    """A process, told apart from a later one with its id."""

    pid: int
    started: str
    command: str


def process(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if stat[0] in "ZX" else Process(pid, stat[19], command)


def alive(processes: Iterable[Process]) -> list[Process]:
    return [known for known in processes if process(known.pid) == known]


def serving(*models: Path) -> list[Process]:
    """Every process of this machine whose command line names a model below these folders."""
    found = (process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [known for known in found if known and any(str(folder) in known.command for folder in models)]


def wait_until_gone(processes: list[Process]) -> list[Process]:
    deadline = time.monotonic() + _GONE_WITHIN_S
    while (left := alive(processes)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def moments(artifacts: list[Artifact]) -> dict[str, dict[str, object]]:
    samples = [artifact.id for artifact in artifacts if artifact.stage == "samples"]
    checkpoints = [artifact.id for artifact in artifacts if artifact.stage == "checkpoint"]
    assert len(samples) == len(checkpoints) == 2
    return {
        "sampling": stop_at(f"os.rename .*/{samples[0]}.partial/groups-00001.parquet"),
        # the third request of round 1's stage: health, then the reload, then the cache; nothing is verified yet
        "weight sync": stop_at("socket.connect", nth=3, after=f"os.mkdir .*/{samples[1]}.partial"),
        "update": stop_at(f"os.rename .*/{checkpoints[1]}.partial/scratch/tmp .*/step-00000002"),
    }


def test_a_driver_killed_three_times_leaves_no_server_and_ends_byte_identical(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    settings = small_config(testbed, evaluation=NO_EVALUATION)
    settings["generation"] |= {"engine": "vllm"}
    settings["vllm"] = {"kv_cache_gib": 0.25, "max_num_seqs": 16, "concurrency": 8, "start_timeout_s": 400}
    config = write_config(tmp_path / "c.yaml", settings)
    out, uninterrupted = tmp_path / "killed" / "run", tmp_path / "uninterrupted" / "run"
    models = (testbed / "sft", store_of(out), store_of(uninterrupted))

    for name, moment in moments(planned(config, [], out)).items():
        attempt = sail.start("run", config, "--out", out, cwd=tmp_path, at=moment)
        attempt.wait_until_stopped(timeout_s=500)
        family = [known for pid in descendants(attempt.pid) if (known := process(pid))]
        assert any("sail.serving.guard" in known.command for known in family), name
        assert len(family) >= 3 and serving(*models), f"{name}: guard, server and engine"
        attempt.send(signal.SIGKILL)
        assert attempt.wait().returncode == -signal.SIGKILL, name
        left = wait_until_gone(family)
        assert not left, f"{name}: alive {_GONE_WITHIN_S:g} s after the kill: {left}"
        assert not serving(*models), name

    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.err
    assert done.announced[1] == {"checkpoint": 1}, "only the killed update was left"
    assert "resuming at step 1" in done.out
    assert not list((out / "logs" / "attempt-4").glob("vllm-*.log")), "samples were all there: no server needed"
    logs = [path.read_text() for path in (out / "logs").glob("attempt-*/vllm-*.log")]
    assert len(logs) == 3

    done = sail.run("run", config, "vllm.during_update=stop", "--out", uninterrupted, cwd=tmp_path)
    assert done.returncode == 0, done.err
    logs = [path.name for path in (uninterrupted / "logs" / "attempt-1").glob("vllm-*.log")]
    assert sorted(logs) == ["vllm-1.log", "vllm-2.log"], "the server was stopped for the update, then started again"
    assert digests(store_of(out)) == digests(store_of(uninterrupted))
    assert linked(out) == linked(uninterrupted)
    assert not serving(*models)
