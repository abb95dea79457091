"""The engine in one process of our own: the same samples, the same ways of new weights, and nothing left of it."""

import os
import signal

import pytest

from sail.serving.completions import CompletionRequest
from sail.serving.errors import RequestRefusedError
from sail.serving.exchange import Exchange
from sail.serving.policy_server import PolicyServer
from sail.serving.processes import descendants
from tests.serving.test_server import still_alive_after
from tests.serving_fixtures import EOS_ID, LORA_RANK, SETTINGS, make_tiny_adapter, serve, served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
REQUESTS = [
    CompletionRequest((5, 6, 3 + index), 3, 1000 * index, 60, temperature=0.8, top_k=50 * (index % 2), cache_salt="v")
    for index in range(24)
] + [CompletionRequest((5, 6), 2, 7, 60, stop=("w9",)), CompletionRequest((5, 6), 2, 7, 60, stop_token_ids=(9, 11))]


@pytest.fixture(scope="module")
def colocated(tmp_path_factory):
    settings = SETTINGS.replace(mode="colocate", cores=None)
    with PolicyServer(settings, tmp_path_factory.mktemp("colocated"), lora_rank=LORA_RANK) as engine:
        yield engine


def test_it_gives_the_samples_of_a_server(colocated, policy_server, tiny_policies, tmp_path):
    adapter = make_tiny_adapter(tmp_path / "adapter", tiny_policies["tied-b"], seed=3)
    for policy in (served(tiny_policies["tied-a"]), served(tiny_policies["tied-b"]), adapter.served()):
        policy_server.serve(policy)
        colocated.serve(policy)
        assert colocated.replicas[0].report.max_abs_nats < 1e-3
        assert dict(colocated.complete_many(REQUESTS)) == dict(policy_server.complete_many(REQUESTS)), policy.version
    assert colocated.num_starts == 1, "new weights go into the running engine"


def test_it_is_one_process_behind_its_guard_and_one_that_is_killed_is_started_again(colocated, tiny_policies):
    serve(colocated, tiny_policies["tied-a"])
    expected = dict(colocated.complete_many(REQUESTS))
    starts, guard = colocated.num_starts, colocated.replicas[0].server.pid
    [engine] = descendants(guard)
    answers = colocated.complete_many(REQUESTS)
    drawn = [next(answers)]
    os.kill(engine, signal.SIGKILL)
    drawn += answers
    assert len(drawn) == len(REQUESTS) and dict(drawn) == expected
    assert colocated.num_starts == starts + 1
    assert still_alive_after([guard, engine], 30.0) == []


def test_requests_of_a_reader_who_left_are_forgotten(colocated, tiny_policies):
    client = serve(colocated, tiny_policies["tied-a"])
    long = [CompletionRequest((5, 6, 3 + index), 4, index, 400, cache_salt="v") for index in range(16)]
    answers = client.complete_many(long)
    next(answers)
    answers.close()
    client.reset_prefix_cache()  # which waits two seconds at most for requests that still run


def test_a_request_over_the_context_and_one_for_a_stranger_are_refused(colocated, tiny_policies):
    client = serve(colocated, tiny_policies["tied-a"])
    exchange = Exchange(client.base_url, timeout_s=60.0)
    body = {"model": client.model, "prompt": [5] * 600, "max_tokens": 1, "stop_token_ids": [EOS_ID]}
    with pytest.raises(RequestRefusedError, match="600"):
        exchange.once("POST", "/v1/completions", body)
    with pytest.raises(RequestRefusedError, match="no model"):
        exchange.once("POST", "/v1/completions", body | {"model": "stranger"})
