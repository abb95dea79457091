"""The server as a process: ports, failures with a cure, and nothing left behind by a driver that is
killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sail.core.errors import UserError
from sail.serving.errors import ServerError
from sail.serving.ports import reserved_port
from sail.serving.processes import descendants
from sail.serving.server import VllmServer
from sail.serving.start_failures import start_failure, unused_log
from tests.serving_fixtures import SETTINGS

ALL_GONE_S = 30.0
DRIVER = """
    import sys, time
    from pathlib import Path
    from tests.serving_fixtures import SETTINGS
    from sail.serving.server import VllmServer
    model, log = map(Path, sys.argv[1:])
    server = VllmServer.start(model, version='a', settings=SETTINGS, log_path=log, max_model_len=None)
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.vllm
def test_nothing_outlives_a_driver_killed_with_sigkill(policy_server, tiny_policies, tmp_path):
    policy_server.stop()  # one server at a time on a small machine
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(DRIVER),
            tiny_policies["untied-a"].path,
            tmp_path / "vllm.log",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        guard = int(driver.stdout.readline())
        family = [guard, *descendants(guard)]
        assert len(family) >= 3, "guard, API server, engine"
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert still_alive_after(family, ALL_GONE_S) == []
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


def test_a_taken_port_names_the_setting_and_the_cure(tiny_policies, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(UserError, match=rf"vllm\.port: port {port} cannot be used.*vllm\.port=0"):
            VllmServer.start(
                tiny_policies["untied-a"].path,
                version="a",
                settings=SETTINGS.replace(port=port),
                log_path=tmp_path / "vllm.log",
                max_model_len=None,
            )


def test_a_reserved_port_is_held_from_strangers_but_open_to_vllm():
    with reserved_port(0) as port, socket.socket() as vllm, socket.socket() as stranger:
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        vllm.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        vllm.bind(("127.0.0.1", port))


def test_arguments_vllm_does_not_know_end_in_a_message_with_a_cure(tiny_policies, tmp_path):
    settings = SETTINGS.replace(args={"no-such-option": 1})
    with pytest.raises(UserError, match=r"vllm\.args: .*unrecognized arguments: --no-such-option"):
        VllmServer.start(
            tiny_policies["untied-a"].path,
            version="a",
            settings=settings,
            log_path=tmp_path / "x.log",
            max_model_len=None,
        )


def test_a_server_too_slow_to_start_is_stopped(tiny_policies, tmp_path):
    settings = SETTINGS.replace(start_timeout_s=2.0)
    mine = descendants_of_this_process()
    with pytest.raises(ServerError, match=r"not ready after 2 s \(vllm.start_timeout_s\)"):
        VllmServer.start(
            tiny_policies["untied-a"].path,
            version="a",
            settings=settings,
            log_path=tmp_path / "x.log",
            max_model_len=None,
        )
    assert descendants_of_this_process() <= mine


def test_an_unknown_failure_tells_the_first_error_and_the_end_of_the_log(tmp_path):
    log = tmp_path / "vllm.log"
    log.write_text("INFO fine\nKeyError: 'rope'\n" + "noise\n" * 50 + "RuntimeError: see above\n - leaked type\n")
    error = start_failure(log, "did not start")
    assert isinstance(error, ServerError)
    assert "first error: KeyError: 'rope'" in str(error) and str(error).endswith("RuntimeError: see above")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", "environment: .*pip uninstall torchvision"),
        ("NotImplementedError: Unsupported CPU attention configuration: head_dim=16", "32, 64, ... dimensions"),
    ],
)
def test_a_known_cause_is_one_line_with_its_cure(tmp_path, line, told):
    log = tmp_path / "vllm.log"
    log.write_text(f"INFO fine\n{line}\n" + "noise\n" * 50)
    error = start_failure(log, "did not start")
    assert isinstance(error, UserError) and "\n" not in str(error)
    assert re.search(told, str(error))


@pytest.mark.parametrize("host", ["::1", "no-such-machine.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_the_users_mistake(host):
    with pytest.raises(UserError, match=rf"vllm\.host: '{host}' is no address a server can listen at here"):  # noqa: SIM117
        with reserved_port(0, host):
            pass


def test_a_servers_log_never_takes_the_place_of_an_earlier_ones(tmp_path):
    """An ablation opens an engine for each of its settings, and all log to one folder."""
    for expected in ("vllm-1.log", "vllm-2.log"):
        log = unused_log(tmp_path, "vllm")
        assert log.name == expected
        log.write_text("why it did not start")
    assert unused_log(tmp_path, "rm-vllm").name == "rm-vllm-1.log"


def still_alive_after(pids: list[int], timeout_s: float) -> list[int]:
    """Which of the processes live on when time is up; returns as soon as none does."""
    deadline = time.monotonic() + timeout_s
    while (alive := [pid for pid in pids if runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive


def runs(pid: int) -> bool:
    """It exists and is no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def descendants_of_this_process() -> set[int]:
    return set(descendants(os.getpid()))
