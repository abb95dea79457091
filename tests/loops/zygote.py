"""A process that has imported the project and nothing else, and forks one child per `sail` command.

    python zygote.py        requests are JSON lines on stdin, answers JSON lines on stdout
    {"start": {"args": ["run", ...], "cwd": ..., "out": ..., "err": ..., "env": {...}, "kill": {...}}}  ->  {"pid": 17}
    {"wait": 17}  ->  {"returncode": -9}

A child is a real process with its own exit status and signals; only the seconds of imports are shared. With "kill" it
sends itself SIGKILL at the nth file-system or network operation whose line matches a pattern. The lines come from
Python's audit events ("os.rename <from> <to>", "open <path>", "os.mkdir <path>"), so the product needs no hooks, and a
kill falls between two operations on the disk, always the same two. With "trace" the lines are written down instead.
"""

import ctypes
import importlib
import json
import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

_WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree", "socket.connect", "subprocess.Popen")
_MODULES = (
    "loops.cli", "loops.run", "loops.estimates", "loops.inspection", "sail.generation.transformers_engine",
    "sail.generation.vllm_engine", "datasets", "peft", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "sail.testbed.gold",
)  # fmt: skip


class Killer:
    """SIGKILL at the nth matching operation, at once or delay_s later."""

    def __init__(self, pattern: str, nth: int = 1, delay_s: float = 0.0) -> None:
        self.pattern, self.left, self.delay_s = re.compile(pattern), nth, delay_s

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _WATCHED and self.pattern.search(line_of(event, args)):
            self.left -= 1
            if self.left == 0 and self.delay_s:
                threading.Timer(self.delay_s, kill_myself).start()
            elif self.left == 0:
                kill_myself()


class Tracer:
    """Writes every watched operation down."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _WATCHED:
            os.write(self.file, (line_of(event, args) + "\n").encode())


def line_of(event: str, args: tuple[Any, ...]) -> str:
    return " ".join([event, *(str(arg) for arg in args if isinstance(arg, (str, os.PathLike, tuple, list)))])


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_child(request: dict[str, Any]) -> NoReturn:
    """The child's side of the fork: become `sail ARGS...`."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no command outlives the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    for number, mode, path in ((0, os.O_RDONLY, os.devnull), (1, os.O_WRONLY, request["out"]),
                               (2, os.O_WRONLY, request["err"])):  # fmt: skip
        os.dup2(os.open(path, mode | (os.O_CREAT if mode else 0)), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["sail", *request["args"]]
    if "kill" in request:
        sys.addaudithook(Killer(**request["kill"]))
    if "trace" in request:
        sys.addaudithook(Tracer(request["trace"]))
    code = exit_code()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code() -> int:
    from loops.cli import main

    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    for name in _MODULES:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a child's stray output is no answer
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"returncode": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                run_child(request["start"])
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    serve()
