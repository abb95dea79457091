"""The guard without vLLM: a stubborn process tree ends with its driver, however that ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sail.serving import guard
from sail.serving.processes import descendants
from tests.serving.test_server import runs, still_alive_after

REPOSITORY = Path(__file__).parents[2]
GONE_S = guard.GRACE_S + guard.KILL_S

# a server whose grandchild is in a session of its own; with "stubborn" it ignores SIGTERM as well
SERVER = textwrap.dedent("""
    import os, signal, sys, time
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
    time.sleep(600)
""")
DRIVER = textwrap.dedent("""
    import subprocess, sys, time
    guard = subprocess.Popen([sys.executable, "-m", "sail.serving.guard", *sys.argv[1:]],
                             stdin=subprocess.PIPE, start_new_session=True)
    print(guard.pid, flush=True)
    time.sleep(600)
""")


def start_family(*options: str) -> tuple[subprocess.Popen, int, list[int]]:
    """A driver, its guard, and the guard with all its processes (server, 2 children, 1 grandchild)."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, sys.executable, "-c", SERVER, *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    guard_pid = int(driver.stdout.readline())
    deadline = time.monotonic() + 20
    while len(descendants(guard_pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # the last of them has left for its session by now
    family = [guard_pid, *descendants(guard_pid)]
    assert len(family) == 5
    return driver, guard_pid, family


@pytest.fixture
def family(request):
    driver, guard_pid, pids = start_family(*request.param)
    yield driver, guard_pid, pids
    for pid in [driver.pid, *pids]:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()


@pytest.mark.parametrize(
    ("family", "number"), [((), signal.SIGTERM), (("stubborn",), signal.SIGKILL)], indirect=["family"]
)
def test_the_tree_ends_with_its_driver(family, number):
    driver, _, pids = family
    driver.send_signal(number)
    driver.wait()
    assert still_alive_after(pids, GONE_S) == []


@pytest.mark.parametrize("family", [()], indirect=True, ids=["plain"])
def test_the_tree_ends_when_the_guard_is_asked_to(family):
    _, guard_pid, pids = family
    os.kill(guard_pid, signal.SIGTERM)
    assert still_alive_after(pids[1:], GONE_S) == []


@pytest.mark.parametrize("family", [()], indirect=True, ids=["plain"])
def test_a_server_killed_outright_takes_its_orphans_along(family):
    _, guard_pid, pids = family
    server = next(pid for pid in pids[1:] if parent_of(pid) == guard_pid)
    os.kill(server, signal.SIGKILL)
    assert still_alive_after(pids[1:], GONE_S) == []


@pytest.mark.parametrize("family", [()], indirect=True, ids=["plain"])
def test_a_guard_killed_outright_takes_the_server_along(family):
    _, guard_pid, pids = family
    server = next(pid for pid in pids[1:] if parent_of(pid) == guard_pid)
    os.kill(guard_pid, signal.SIGKILL)
    assert still_alive_after([server], GONE_S) == []


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
