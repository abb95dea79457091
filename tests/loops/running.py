"""`sail` as real processes: started, signalled, waited for; configs and stores to go with them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import yaml

from sail.core.artifacts import MANIFEST, Artifact
from sail.core.atomic import file_sha256, tree_files

COMMAND = [sys.executable, "-c", "from loops.cli import main; main()"]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # tiny models are faster and steadier on one thread
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_PLAN = re.compile(r"(\d+) artifacts reused, (\d+) new(?: \((.*?)\))?")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    out: str
    err: str
    seconds: float

    @property
    def error(self) -> str:
        """The one line of a user's mistake."""
        lines = [line for line in self.err.splitlines() if line.startswith("error ")]
        assert len(lines) == 1, f"expected one error line, got: {self.err[-3000:]}"
        return lines[0].removeprefix("error ")

    @property
    def announced(self) -> tuple[int, dict[str, int]]:
        """(artifacts reused, new artifacts by stage), as printed before the run started."""
        found = _PLAN.search(" ".join(self.out.split()))
        assert found, self.out
        new = dict(part.rsplit(" ", 1) for part in found[3].split(", ")) if found[3] else {}
        assert sum(map(int, new.values())) == int(found[2])
        return int(found[1]), {stage: int(number) for stage, number in new.items()}


@dataclass(frozen=True)
class Attempt:
    """A command under way."""

    zygote: "Zygote"
    pid: int
    out: Path
    err: Path
    started: float

    def wait(self) -> Done:
        returncode = self.zygote.ask({"wait": self.pid})["returncode"]
        return Done(returncode, self.out.read_text(), self.err.read_text(), time.monotonic() - self.started)

    def wait_until_stopped(self, timeout_s: float = 60.0) -> None:
        """Until a SIGSTOP took hold."""
        deadline = time.monotonic() + timeout_s
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, f"not stopped: {self.out.read_text()} {self.err.read_text()}"
            time.sleep(0.01)

    def send(self, *signals: signal.Signals) -> None:
        for number in signals:
            os.kill(self.pid, number)


class Zygote:
    """The process of zygote.py; every `sail` is a fork of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._names = folder, count()
        self._log = (folder / "zygote.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))], text=True, env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        self._ready = False

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        if not self._ready:
            self._ready = json.loads(self._process.stdout.readline() or "null") == {}
            assert self._ready, Path(self._log.name).read_text()
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, *args: str | Path, cwd: Path, at: Mapping[str, Any] | None = None) -> Attempt:
        """`sail ARGS...` in cwd; `at` is where it signals itself (zygote.py)."""
        name = next(self._names)
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        request = {"args": [str(arg) for arg in args], "cwd": str(cwd), "out": str(out), "err": str(err)}
        started = time.monotonic()
        answer = self.ask({"start": request | ({} if at is None else {"at": dict(at)})})
        return Attempt(self, answer["pid"], out, err, started)

    def run(self, *args: str | Path, cwd: Path, at: Mapping[str, Any] | None = None) -> Done:
        return self.start(*args, cwd=cwd, at=at).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()


def run_afresh(*args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    """`sail ARGS...` in a process of its own, imports and all."""
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *map(str, args)], cwd=cwd, env=os.environ | ENVIRONMENT | dict(env or {}), capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def kill_at(pattern: str, nth: int = 1, after: str = "") -> dict[str, Any]:
    return {"pattern": pattern, "nth": nth, "after": after, "signal": signal.SIGKILL}


def stop_at(pattern: str, nth: int = 1, after: str = "") -> dict[str, Any]:
    return {"pattern": pattern, "nth": nth, "after": after, "signal": signal.SIGSTOP}


def small_config(testbed: Path, **changes: Any) -> dict[str, Any]:
    """Two rounds of SAIL-PR with every kind of stage; `changes` replace whole sections."""
    return {
        "preset": "sail-pr",
        "model_name_or_path": str(testbed / "sft"),
        "data": {
            "prefs": {"path": str(testbed / "prefs.jsonl"), "limit": 48},
            "prompts": {"path": str(testbed / "prompts.jsonl")},
            "heldout": {"path": str(testbed / "prefs_heldout.jsonl")},
        },
        "labelers": {
            "rm": {
                "kind": "reward_model",
                "fit": {"data": "prefs", "steps": 4, "train_batch_size": 16, "learning_rate": 1e-3},
            },
            "gold": {"kind": "callable", "path": "sail.testbed.gold:hump"},
        },
        "prompts": {"from": "prompts", "per_round": 16},
        "num_rounds": 2,
        "generation": {"engine": "transformers", "max_completion_length": 24, "shard_size": 4},
        "update": {"steps": 4, "train_batch_size": 8, "learning_rate": 5e-4, "save_steps": 1},
        "evaluation": {"num_prompts": 8, "num_generations": 2, "scorers": ["gold", "rm"], "pairs": "heldout"},
    } | changes


NO_EVALUATION = {"num_prompts": 0}


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return path


def planned(config: Path, overrides: Sequence[str], out: Path) -> list[Artifact]:
    """The artifacts of a run in the order they are built."""
    from loops.config import load_config
    from loops.run import make_plan
    from loops.run_folder import RunFolder

    settings = load_config(str(config), overrides).settings
    return [stage.artifact for stage in make_plan(settings, RunFolder(out)).stages.values()]


def store_of(out: Path) -> Path:
    return out.parent / ".store"


def digests(store: Path) -> dict[str, str]:
    """relative path -> SHA-256 of every file in a store, manifests included; lock files are empty and left out."""
    return {
        str(path.relative_to(store)): file_sha256(path)
        for path in tree_files(store)
        if path.relative_to(store).parts[0] != "locks"
    }


def stamps(store: Path) -> dict[str, tuple[int, int]]:
    """relative path -> (inode, modification time): what changes when a file is written again with equal bytes."""
    files = [path for path in tree_files(store) if path.relative_to(store).parts[0] != "locks"]
    return {str(path.relative_to(store)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def committed(store: Path) -> dict[str, Artifact]:
    """The artifacts of a store by id."""
    folders = [path.parent for path in store.glob(f"*/{MANIFEST}") if path.parent.suffix not in (".partial", ".pruned")]
    ids = [folder.name.rpartition("-") for folder in folders]
    return {path.name: Artifact(stage, key, path) for path, (stage, _, key) in zip(folders, ids, strict=True)}


def linked(out: Path) -> dict[str, str]:
    """rounds/000/checkpoint -> the id it points to."""
    links = [path for path in (out / "rounds").rglob("*") if path.is_symlink()]
    return {str(link.relative_to(out)): Path(os.readlink(link)).name for link in links}


def weights(out: Path, round_index: int = 0) -> bytes:
    return (out / "rounds" / f"{round_index:03d}" / "checkpoint" / "model" / "model.safetensors").read_bytes()


def copied(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to, symlinks=True)
