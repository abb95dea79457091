"""The driver's side of a stage in several processes: start them, pass on what they say, let none outlive us.

    driver --(pipe on stdin)--> guard --> accelerate launch --> worker 0, worker 1, ...

The guard is the vLLM server's (sail/serving/guard.py): it ends the whole tree when the driver does. What the workers
are to do is a JSON file beside their log, what came of it another.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from sail.core import atomic
from sail.core.errors import LaunchError, UserError
from sail.core.store import Recipe, Workspace
from sail.policy.scoring import ScoringInputs, scoring_recipe
from sail.serving import guard
from sail.serving.processes import descendants, send_signal
from sail.update.inputs import UpdateInputs, update_recipe

WORKER = "sail.update.worker"
SAYS = "sail: "  # begins the lines of a log that the driver passes on
_POLL_S = 0.2
_STOP_S = guard.GRACE_S + guard.KILL_S + 5.0
_TAIL_LINES = 30


@dataclass(frozen=True)
class Launch:
    """How the processes of a stage are started: command -m sail.update.worker JOB."""

    command: tuple[str, ...]  # begins with an absolute path
    log_folder: Path
    num_processes: int | None = None  # what must have started; None: whatever the command starts
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What every process of a stage is told."""

    inputs: UpdateInputs | ScoringInputs
    key: str  # of the artifact: a worker that reads other inputs than the driver had would show here
    workspace: Path
    answer: Path  # {"result": ...} or {"error": ...}
    num_processes: int | None


def write_job(path: Path, job: Job) -> None:
    path.write_bytes(TypeAdapter(Job).dump_json(job, indent=1))


def read_job(path: Path) -> Job:
    return TypeAdapter(Job).validate_json(path.read_bytes())


def recipe_of(inputs: UpdateInputs | ScoringInputs) -> Recipe:
    return update_recipe(inputs) if isinstance(inputs, UpdateInputs) else scoring_recipe(inputs)


def run_in_processes(workspace: Workspace, inputs: UpdateInputs | ScoringInputs, launch: Launch) -> dict[str, Any]:
    """An update, or a table of log-probs; raises the processes' UserError, or LaunchError with the end of their log."""
    key = recipe_of(inputs).key
    name = f"update-{inputs.round_index:03d}" if isinstance(inputs, UpdateInputs) else f"logps-{key}"
    base = launch.log_folder.absolute() / name
    base.parent.mkdir(parents=True, exist_ok=True)
    job_path, log_path, answer = (base.with_suffix(suffix) for suffix in (".job.json", ".log", ".answer.json"))
    answer.unlink(missing_ok=True)
    write_job(job_path, Job(inputs, key, workspace.path.absolute(), answer, launch.num_processes))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # they may share our device
    with _started([*launch.command, "-m", WORKER, str(job_path)], launch.environment, log_path) as process:
        _listen(process, log_path, workspace)
    return _result(answer, log_path)


@contextmanager
def _started(command: list[str], environment: Mapping[str, str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command behind a guard; it is ended with the block, also by an exception such as Ctrl-C."""
    with log_path.open("wb") as log:
        log.write((" ".join(command) + "\n").encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", guard.__name__, *command],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            send_signal([*descendants(process.pid), process.pid], signal.SIGKILL)
            process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _listen(process: subprocess.Popen[bytes], log_path: Path, workspace: Workspace) -> None:
    """Until it ends, say what it says."""
    with log_path.open(errors="replace") as log:
        while process.poll() is None:
            time.sleep(_POLL_S)
            _pass_on(log, workspace)
        _pass_on(log, workspace)


def _pass_on(log: TextIOWrapper, workspace: Workspace) -> None:
    """The whole lines that are new; half a line is left for the next time."""
    while True:
        start = log.tell()
        line = log.readline()
        if not line.endswith("\n"):
            log.seek(start)
            return
        if line.startswith(SAYS):
            workspace.say(line.removeprefix(SAYS).rstrip("\n"))


def _result(answer: Path, log_path: Path) -> dict[str, Any]:
    found = json.loads(answer.read_text()) if answer.exists() else {}
    if "error" in found:
        error = found["error"]
        raise UserError(error["problem"], where=error["where"], cure=error["cure"])
    if "result" not in found:
        lines = log_path.read_text(errors="replace").splitlines()
        tail = "\n".join(lines[-_TAIL_LINES:])
        raise LaunchError(f"the processes died; their log {log_path} ends:\n{tail}")
    result: dict[str, Any] = found["result"]
    return result


def write_answer(answer: Path, found: dict[str, Any]) -> None:
    atomic.write_json(answer, found)
