"""One policy at a time: kept while nothing changes, restarted when it is lost, external servers left
alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sail.core.errors import UserError
from sail.serving.client import CompletionRequest
from sail.serving.errors import ServerError, WeightSyncError
from sail.serving.policy_server import PolicyServer
from sail.serving.processes import descendants
from tests.serving_fixtures import SETTINGS, serve, served

LOST_ENGINE_S = 30.0


def test_the_driver_side_imports_neither_torch_nor_vllm():
    code = (
        "import sys, sail.serving.policy_server, sail.serving.guard;"
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_mode_external_without_a_server_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"vllm.server_urls"):
        PolicyServer(SETTINGS.replace(mode="external"), tmp_path)


@pytest.mark.vllm
def test_a_version_already_served_costs_no_question(policy_server, tiny_policies):
    policy = tiny_policies["tied-a"]
    client = serve(policy_server, policy)

    def score(prompt_ids, response_ids):
        raise AssertionError("the served version was verified again")

    policy_server.serve(served(policy, score))
    assert policy_server.clients == [client]


@pytest.mark.vllm
def test_an_external_server_is_synced_but_never_stopped(policy_server, tiny_policies, tmp_path):
    old, new = tiny_policies["tied-a"], tiny_policies["tied-b"]
    owner = serve(policy_server, old)
    settings = SETTINGS.replace(mode="external", server_urls=(owner.base_url,))
    with PolicyServer(settings, tmp_path) as external:
        client = serve(external, new)
        assert client.collective_rpc("sail_state")[0]["version"] == new.version
        assert external.replicas[0].report.max_abs_nats < 1e-3
        with pytest.raises(WeightSyncError):
            external.serve(served(old, new.score))
        serve(external, old)
    assert policy_server.replicas[0].server.alive() and owner.health()


@pytest.mark.vllm
def test_a_killed_engine_ends_requests_soon_and_the_next_serve_restarts(policy_server, tiny_policies):
    policy = tiny_policies["tied-a"]
    client = serve(policy_server, policy)
    starts = policy_server.num_starts
    before = client.complete(CompletionRequest((5, 6, 7), 2, 11, 16))
    requests = [CompletionRequest((5, 6, 3 + index), 4, 100 * index, 256) for index in range(64)]
    answers = client.complete_many(requests)
    next(answers)
    os.kill(engine_of(policy_server.replicas[0].server.pid), signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(ServerError, match="failed 5 times"):
        list(answers)
    assert time.monotonic() - killed < LOST_ENGINE_S
    client = serve(policy_server, policy)
    assert policy_server.num_starts == starts + 1
    assert client.complete(CompletionRequest((5, 6, 7), 2, 11, 16)) == before, "a restart keeps the bits"


def engine_of(guard_pid: int) -> int:
    """The pid of the EngineCore process below the guard."""
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(guard_pid)}
    [engine] = [pid for pid, name in names.items() if "EngineCore" in name]
    return engine
