"""`python -m sail.serving.guard COMMAND...`: run a command and let nothing of it outlive us or our driver.

    driver --(pipe on stdin)--> guard --> API server --> EngineCore --> Worker

A SIGKILL of the API server, or of the driver, would orphan the engine and its gigabytes. The guard is the
reaper of every orphan below it (PR_SET_CHILD_SUBREAPER), so the whole tree stays reachable even where a
process made a session of its own. It ends the tree when the driver closes the pipe (or dies, which closes
it), when the driver is no longer its parent (a fork of the driver may hold the pipe open), on SIGTERM, and
when the API server ends by itself. Should the guard itself be killed, the API server gets SIGTERM from the
kernel (PR_SET_PDEATHSIG) and ends the rest.
"""

import ctypes
import os
import select
import signal
import sys
from typing import NoReturn

from sail.serving.processes import descendants, send_signal, wait_until_childless

GRACE_S = 8.0  # vLLM needs about 1 s to stop by itself
KILL_S = 10.0
_POLL_S = 0.25
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    driver, terminated = os.getppid(), []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: terminated.append(True))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = _spawn(command)
    server_lives = True
    while server_lives and not terminated and os.getppid() == driver and not _pipe_closed():
        server_lives = _reap(server)
    end_descendants(grace_s=GRACE_S if server_lives else 0.0)
    return 0


def end_descendants(grace_s: float) -> None:
    """SIGTERM, a bounded wait, then SIGKILL until nothing lives below this process."""
    if grace_s:
        send_signal(descendants(os.getpid()), signal.SIGTERM)
    if not wait_until_childless(grace_s):
        for _ in range(int(KILL_S)):
            send_signal(descendants(os.getpid()), signal.SIGKILL)
            if wait_until_childless(1.0):
                return


def _spawn(command: list[str]) -> int:
    guard, child = os.getpid(), os.fork()
    if child == 0:
        _become(command, guard)
    return child


def _become(command: list[str], guard: int) -> NoReturn:
    """The child's side of the fork: the kernel is told to end it with the guard, then it turns into the
    command."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guard:
        os._exit(1)  # the guard died between fork and prctl
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(command[0], command)


def _pipe_closed() -> bool:
    """Wait a moment; whether the driver's end of our stdin is gone."""
    ready, _, _ = select.select([0], [], [], _POLL_S)
    return bool(ready) and os.read(0, 1) == b""


def _reap(server: int) -> bool:
    """Collect ended children; whether the server is still among the living."""
    while True:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == server:
            return False
        if pid == 0:
            return True


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
