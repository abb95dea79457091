"""A process that has imported the project and nothing else, and forks one child per `sail` command.

    python zygote.py        requests are JSON lines on stdin, answers JSON lines on stdout
    {"start": {"args": ["run", ...], "cwd": ..., "out": ..., "err": ..., "at": {...}}}  ->  {"pid": 17}
    {"wait": 17}  ->  {"returncode": -9}

A child is a real process with its own exit status and signals; only the seconds of imports are shared. With "at" it
sends itself a signal (SIGKILL, SIGSTOP) at the nth file-system operation whose line matches a pattern, counted from
the first line that matches `after`. The lines come from Python's audit events ("os.rename <from> <to>", "open <path>
<mode>", "os.mkdir <path>"), so the product needs no hooks, and the signal falls between two operations on the disk,
always the same two. With "trace" all lines are written down instead, to choose patterns from.
"""

import ctypes
import importlib
import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

_WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree", "socket.connect", "subprocess.Popen")
_MODULES = (
    "loops.cli", "loops.run", "loops.estimates", "loops.inspection", "loops.ablate", "datasets", "peft",
    "sail.generation.transformers_engine", "sail.generation.vllm_engine", "sail.testbed.gold",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
)  # fmt: skip


class SignalAt:
    """The signal at the nth matching operation."""

    def __init__(self, pattern: str, signal: int, nth: int = 1, after: str = "") -> None:
        self.pattern, self.after, self.signal = re.compile(pattern), re.compile(after), signal
        self.left, self.armed = nth, not after

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _WATCHED or self.left == 0:
            return
        line = line_of(event, args)
        if not self.armed:
            self.armed = bool(self.after.search(line))
        elif self.pattern.search(line):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.signal)


class Tracer:
    """Writes every watched operation down."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _WATCHED:
            os.write(self.file, (line_of(event, args) + "\n").encode())


def line_of(event: str, args: tuple[Any, ...]) -> str:
    return " ".join([event, *(str(arg) for arg in args if isinstance(arg, (str, os.PathLike, tuple, list)))])


def run_child(request: dict[str, Any]) -> NoReturn:
    """The child's side of the fork: become `sail ARGS...`."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no command outlives the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    streams = [(os.devnull, os.O_RDONLY), (request["out"], write), (request["err"], write)]
    for number, (path, mode) in enumerate(streams):
        os.dup2(os.open(path, mode), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    sys.argv = ["sail", *request["args"]]
    if "at" in request:
        sys.addaudithook(SignalAt(**request["at"]))
    if "trace" in request:
        sys.addaudithook(Tracer(request["trace"]))
    code = exit_code()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code() -> int:
    """What the interpreter would exit with."""
    from loops.cli import main

    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - the interpreter's own last resort
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
    sys.path[0] = str(Path(__file__).parents[2])
    serve()
