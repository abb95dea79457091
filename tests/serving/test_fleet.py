"""Several servers: the same samples as one gives, spread by load, and one that is slow or dead only costs time."""

import json
import os
import signal

import pytest

from sail.core.errors import UserError
from sail.serving.completions import CompletionRequest
from sail.serving.policy_server import PolicyServer
from sail.serving.processes import descendants
from sail.serving.replica import SYNC_LOG
from tests.serving_fixtures import CORES, LORA_RANK, SETTINGS, finished_requests, make_tiny_adapter, serve, served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
REQUESTS = [CompletionRequest((5, 6, 3 + index), 2, 1000 * index, 48, cache_salt="v") for index in range(48)]


@pytest.fixture(scope="module")
def second_server(tiny_policies, tmp_path_factory):
    settings = SETTINGS.replace(cores=CORES[-1])
    with PolicyServer(settings, tmp_path_factory.mktemp("second"), lora_rank=LORA_RANK) as server:
        serve(server, tiny_policies["untied-a"])
        list(server.complete_many(REQUESTS))  # its first batch takes seconds, and others would overtake it
        yield server


@pytest.fixture
def alone(policy_server, tiny_policies):
    """What one server gives."""
    serve(policy_server, tiny_policies["untied-a"])
    return dict(policy_server.complete_many(REQUESTS))


@pytest.fixture
def fleet(alone, policy_server, second_server, tiny_policies, tmp_path):
    """Both servers, as a run in mode external sees them; nobody listens at the third address."""
    urls = (policy_server.clients[0].base_url, second_server.clients[0].base_url, "http://127.0.0.1:9")
    settings = SETTINGS.replace(mode="external", server_urls=urls, max_retries=2, concurrency=8)
    with PolicyServer(settings, tmp_path) as both:
        both.serve(served(tiny_policies["untied-a"]))
        yield both


def test_several_servers_give_the_samples_of_one(fleet, alone):
    assert len(fleet.clients) == 2, "the third is left out"
    before = [finished_requests(client) for client in fleet.clients]
    assert dict(fleet.complete_many(REQUESTS)) == alone
    drawn = [finished_requests(client) - start for client, start in zip(fleet.clients, before, strict=True)]
    assert min(drawn) > 0, f"spread over both, which have cores of their own, not {drawn}"


def test_new_weights_reach_every_server_and_are_verified_on_each(fleet, tiny_policies, tmp_path):
    adapter = make_tiny_adapter(tmp_path / "adapter", tiny_policies["untied-a"], seed=3)
    for policy in (served(tiny_policies["untied-b"]), adapter.served(), served(tiny_policies["untied-a"])):
        fleet.serve(policy)
        told = [json.loads(line) for line in (tmp_path / SYNC_LOG).read_text().splitlines()][-2:]
        assert {entry["version"] for entry in told} == {policy.version}
        assert {entry["server"] for entry in told} == {client.base_url for client in fleet.clients}
        assert max(entry["max_abs_nats"] for entry in told) < 1e-3


def test_a_stopped_server_only_slows_the_round(fleet, alone, second_server):
    family = descendants(second_server.replicas[0].server.pid)
    answers = fleet.complete_many(REQUESTS)
    drawn = [next(answers)]
    try:
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        drawn += answers  # its timeout is a minute: what it holds is asked elsewhere before
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    assert len(drawn) == len(REQUESTS) and dict(drawn) == alone


def test_a_killed_server_leaves_its_requests_to_the_others(fleet, alone, second_server, tiny_policies):
    answers = fleet.complete_many(REQUESTS)
    drawn = [next(answers)]
    for pid in descendants(second_server.replicas[0].server.pid):
        os.kill(pid, signal.SIGKILL)
    drawn += answers
    assert len(drawn) == len(REQUESTS) and dict(drawn) == alone
    fleet.serve(served(tiny_policies["untied-b"]))
    assert [client.base_url for client in fleet.clients] == [fleet.replicas[0].client.base_url]
    fleet.serve(served(tiny_policies["untied-a"]))


def test_a_server_that_another_run_uses_meanwhile_gives_no_sample_of_its_weights(
    alone, policy_server, tiny_policies, tmp_path
):
    """The other run puts ours back before we could see a version: the number of changes tells."""
    settings = SETTINGS.replace(mode="external", server_urls=(policy_server.clients[0].base_url,), concurrency=2)
    ours, theirs = tiny_policies["untied-a"], tiny_policies["untied-b"]
    drawn = {}
    with PolicyServer(settings, tmp_path / "ours") as run, PolicyServer(settings, tmp_path / "theirs") as other:
        run.serve(served(ours))
        with pytest.raises(UserError, match=r"vllm\.server_urls: .* was given other weights while this run sampled"):
            for position, completions in run.complete_many(REQUESTS):
                drawn[position] = completions
                if len(drawn) == 4:
                    other.serve(served(theirs))
                    other.serve(served(ours))
        assert 4 <= len(drawn) < len(REQUESTS)
        assert drawn == {position: alone[position] for position in drawn}
        run.serve(served(ours))
        assert dict(run.complete_many(REQUESTS)) == alone, "the same command goes on"
        run.clients[0].refuse_other_weights()
        other.serve(served(theirs))
        with pytest.raises(UserError, match=r"vllm\.server_urls: .* was given other weights"):
            run.clients[0].refuse_other_weights()  # what a judge at url: policy asks before its answers are kept
