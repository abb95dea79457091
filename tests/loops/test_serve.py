"""`sail serve` on one side, a command in mode external on the other."""

import re
import signal
import time
from pathlib import Path

import pytest

from sail.serving.processes import descendants
from tests.loops.running import Attempt, Zygote, small_config, write_config
from tests.serving.test_server import still_alive_after

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
_STARTED_WITHIN_S = 400.0


def test_the_doctor_only_looks_at_a_served_model_which_ends_with_ctrl_c(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    settings = small_config(testbed, lora={"r": 4})
    settings["vllm"] = {"kv_cache_gib": 0.25, "max_num_seqs": 16, "start_timeout_s": 400}
    config = write_config(tmp_path / "c.yaml", settings)
    server = sail.start("serve", config, cwd=tmp_path)
    try:
        url = url_of(server)
        family = descendants(server.pid)
        checked = sail.run("doctor", config, "vllm.mode=external", f"vllm.server_urls=['{url}']", cwd=tmp_path)
        assert checked.returncode == 0, checked.err
        untouched = rf"{url}  holds \w+ in float32, given weights 0 times; adapters: none; \d+ tokens"
        assert re.search(untouched, checked.out), "a run may be sampling from it"
    finally:
        server.send(signal.SIGINT)
        assert server.wait().returncode == 130
    assert still_alive_after(family, 30.0) == []


def url_of(server: Attempt) -> str:
    """What it prints once it serves."""
    deadline = time.monotonic() + _STARTED_WITHIN_S
    while time.monotonic() < deadline:
        printed = server.out.read_text() if server.out.exists() else ""
        if said := re.search(r"vllm: \{mode: external, server_urls: \['(\S+)'\]\}", printed):
            return said[1]
        time.sleep(0.5)
    raise AssertionError(server.out.read_text() + server.err.read_text())
