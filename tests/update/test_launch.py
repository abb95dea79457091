"""The driver's side: processes are started, listened to, waited for, told to end, and never left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sail.core.artifacts import Artifact
from sail.core.errors import LaunchError, UserError
from sail.core.store import Store
from sail.serving.processes import descendants
from sail.update.inputs import UpdateInputs, update_recipe
from sail.update.launch import Job, Launch, read_job, write_job
from sail.update.stage import update
from tests.update.desks import CONFIGS, SPREAD, kto, sail
from tests.update.stored import World
from tests.update.test_update import largest_difference

_DRIVER = """
import sys
from pathlib import Path
from sail.core.store import Store
from sail.update.launch import read_job
from sail.update.stage import update
from tests.update.test_launch import two_processes

folder = Path(sys.argv[1])
update(Store(folder / "store"), read_job(folder / "inputs.json").inputs, two_processes(folder))
"""


def two_processes(folder: Path) -> Launch:
    return Launch(
        (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml"),
         "--num_processes", "2"),
        folder / "logs", 2, {"ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip


def python(code: str, folder: Path) -> Launch:
    """A command that runs `code`; what it is given to run comes after, and it does not care."""
    return Launch((sys.executable, "-c", code), folder / "logs")


def endless(world: World) -> UpdateInputs:
    return world.inputs(world.offline(sail(world).routes[0].loss), steps=100_000, save_steps=2, learning_rate=1e-4)


def started(folder: Path, inputs: UpdateInputs) -> subprocess.Popen[bytes]:
    """A driver in a process of its own, some steps into the update."""
    write_job(folder / "inputs.json", Job(inputs, "", folder, folder, None))
    log, deadline = folder / "logs" / "update-000.log", time.monotonic() + 240
    log.unlink(missing_ok=True)
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER, str(folder)])
    while not (log.exists() and log.read_text().count("sail: step ") > 2):
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.2)
    return driver


def commands(pids: list[int]) -> dict[int, str]:
    return {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids}


def gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), SPREAD)


@pytest.mark.parametrize("inputs", [sail, kto])
def test_inputs_come_back_from_their_file_as_they_were(inputs, world: World, tmp_path: Path) -> None:
    adapter = Artifact("checkpoint", "k", tmp_path, base=world.policy)
    given = replace(inputs(world), start=adapter)
    job = Job(given, update_recipe(given).key, tmp_path, tmp_path / "answer.json", 2)
    write_job(tmp_path / "job.json", job)
    assert read_job(tmp_path / "job.json") == job
    assert read_job(tmp_path / "job.json").inputs.start.base == world.policy
    assert update_recipe(read_job(tmp_path / "job.json").inputs).key == job.key


def test_an_update_in_processes_is_the_artifact_of_one_process(world: World, tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path / "store", lambda event: notes.append(event.text))
    made = update(store, sail(world), two_processes(tmp_path))
    inline = update(world.store, sail(world))
    assert made.key == inline.key and largest_difference(made, inline) < 1e-5
    assert made.manifest()["result"] == pytest.approx(inline.manifest()["result"], rel=1e-4, abs=1e-4)
    assert "2 processes (MULTI_CPU, cpu)" in notes and any(note.startswith("step 20 of 20") for note in notes)
    assert (tmp_path / "logs" / "update-000.log").exists()


def test_no_worker_outlives_its_driver_and_a_dead_worker_ends_the_driver(world: World, tmp_path: Path) -> None:
    inputs = endless(world)
    driver = started(tmp_path, inputs)
    below = commands(descendants(driver.pid))
    workers = [pid for pid, command in below.items() if "sail.update.worker" in command and " -u " in command]
    assert len(workers) == 2, below
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert gone(list(below), within_s=30)

    driver = started(tmp_path, inputs)  # resumes: the step checkpoints were kept
    assert "resuming at step" in (tmp_path / "logs" / "update-000.log").read_text()
    worker = next(pid for pid, command in commands(descendants(driver.pid)).items() if " -u " in command)
    os.kill(worker, signal.SIGKILL)
    assert driver.wait(60) == 1


def test_processes_that_die_are_an_error_with_the_end_of_their_log(world: World, tmp_path: Path) -> None:
    launch = python("import sys; print('no such device: cuda:7'); sys.exit(3)", tmp_path)
    with pytest.raises(LaunchError, match="no such device: cuda:7") as failed:
        update(Store(tmp_path / "store"), sail(world), launch)
    assert "update-000.log" in str(failed.value)


def test_a_mistake_that_a_worker_finds_is_the_drivers(world: World, tmp_path: Path) -> None:
    answer = json.dumps({"error": {"problem": "loss nan", "where": "update", "cure": "Lower it"}})
    code = f"import sys; open(sys.argv[-1].replace('.job.', '.answer.'), 'w').write({answer!r}); sys.exit(1)"
    with pytest.raises(UserError, match=r"update: loss nan\. Lower it"):
        update(Store(tmp_path / "store"), sail(world), python(code, tmp_path))
