"""Process trees read from /proc, for a guard that must leave nothing behind. Standard library only."""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Pids of all living processes below `root`, whatever session or group they moved to (zombies left
    out)."""
    children: dict[int, list[int]] = {}
    for pid, parent, state in _process_table():
        if state not in "ZX":
            children.setdefault(parent, []).append(pid)
    found, frontier = [], [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal every pid that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def reap_children() -> None:
    """Collect every child of this process that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def wait_until_childless(timeout_s: float) -> bool:
    """Reap until no descendant of this process lives, or time is up; whether none lives."""
    deadline = time.monotonic() + timeout_s
    while True:
        reap_children()
        if not descendants(os.getpid()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _process_table() -> Iterable[tuple[int, int, str]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we read
        state, parent = stat.rpartition(")")[2].split()[:2]
        yield int(entry.name), int(parent), state
