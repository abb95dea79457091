"""Sampling through a real server: ids, log-probs, stop kinds and seeds are what was asked for."""

import dataclasses
import time

import pytest
import torch

from sail.core.errors import UserError
from sail.serving.client import CompletionRequest, ServerClient
from sail.serving.errors import ServerError
from tests.serving_fixtures import CONTEXT, EOS_ID, SETTINGS, TinyPolicy, finished_requests, serve

pytestmark = pytest.mark.vllm
PROMPT = (5, 17, 4, 201, 33)


@pytest.fixture
def policy(tiny_policies: dict[str, TinyPolicy]) -> TinyPolicy:
    return tiny_policies["untied-a"]


@pytest.fixture
def client(policy_server, policy) -> ServerClient:
    return serve(policy_server, policy)


def request(**changes) -> CompletionRequest:
    return dataclasses.replace(CompletionRequest(PROMPT, n=4, seed=123, max_tokens=24, cache_salt="v"), **changes)


def test_log_probs_agree_with_a_transformers_forward(client, policy):
    for sample in client.complete(request()):
        assert sample.logprobs == pytest.approx(policy.score(PROMPT, sample.token_ids), abs=1e-3)


def test_log_probs_are_of_the_distribution_after_temperature_and_top_k(client, policy):
    for sample in client.complete(request(temperature=0.7, top_k=5)):
        logits_TV = policy.logits(PROMPT, sample.token_ids) / 0.7
        kept = logits_TV >= logits_TV.topk(5, dim=-1).values[:, -1:]
        logps_TV = torch.log_softmax(logits_TV.masked_fill(~kept, -torch.inf), dim=-1)
        expected = logps_TV.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0].tolist()
        assert sample.logprobs == pytest.approx(expected, abs=1e-3)


def test_greedy_tokens_are_the_models_most_likely(client, policy):
    [sample] = client.complete(request(n=1, temperature=0.0))
    assert list(sample.token_ids) == policy.logits(PROMPT, sample.token_ids).argmax(-1).tolist()
    for again in client.complete(request(n=2, top_k=1)):  # the engine's policy_greedy
        assert again.token_ids == sample.token_ids and again.logprobs == pytest.approx([0.0] * len(again.token_ids))


def test_prompt_log_probs_agree_with_a_transformers_forward(client, policy):
    expected = policy.score(PROMPT[:1], PROMPT[1:])
    assert client.token_logprobs(PROMPT) == pytest.approx(expected, abs=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(client):
    assert client.complete(request()) == client.complete(request())
    assert client.complete(request()) != client.complete(request(seed=999))


def test_n_samples_equal_n_separate_seeds(client):
    together = client.complete(request(n=4, seed=40))
    alone = [client.complete(request(n=1, seed=40 + index))[0] for index in range(4)]
    assert together == alone


def test_samples_do_not_depend_on_what_else_is_in_flight(client):
    requests = [request(n=2, seed=1000 * index, prompt_ids=(*PROMPT, 10 + index)) for index in range(24)]
    answers = dict(client.complete_many(requests))
    assert sorted(answers) == list(range(24))
    assert answers[7] == client.complete(requests[7])


def test_requests_wait_for_a_reader_who_does_not_read(client):
    few = ServerClient(client.base_url, model=None, settings=SETTINGS.replace(concurrency=2))
    before = finished_requests(client)
    answers = few.complete_many([request(n=1, seed=index, max_tokens=4) for index in range(100)])
    next(answers)
    time.sleep(3.0)
    assert finished_requests(client) - before < 20
    assert len(list(answers)) == 99


def test_a_sample_cut_by_max_tokens_is_of_length_kind(client):
    for sample in client.complete(request(max_tokens=3)):
        assert (sample.stop_kind, len(sample.token_ids)) == ("length", 3) or sample.token_ids[-1] == EOS_ID


def test_eos_is_among_the_ids_and_has_a_log_prob(client, policy):
    samples = client.complete(request(n=48, max_tokens=300))
    ended = [sample for sample in samples if sample.stop_kind == "eos"]
    assert ended, "no sample of this seed ends: choose another seed"
    for sample in ended:
        assert (sample.token_ids[-1], sample.stop_reason) == (EOS_ID, None)
        assert EOS_ID not in sample.token_ids[:-1]
        assert sample.logprobs[-1] == pytest.approx(policy.score(PROMPT, sample.token_ids)[-1], abs=1e-3)


def test_every_eos_id_of_the_policy_ends_a_response_whatever_the_server_was_started_on(client):
    several = client.asking_for(client.model, frozenset({EOS_ID, *range(100, 140)}))
    samples = several.complete(request(n=16, max_tokens=300))
    assert {sample.stop_kind for sample in samples} == {"eos"}
    assert {sample.token_ids[-1] for sample in samples} & set(range(100, 140))
    assert not {token for sample in samples for token in sample.token_ids[:-1]} & several.eos_ids


def test_a_stop_token_is_included_and_named(client):
    for sample in client.complete(request(stop_token_ids=tuple(range(3, 320)))):
        assert sample.stop_kind == "stop_token" and len(sample.token_ids) == 1
        assert sample.stop_reason == sample.token_ids[-1]


def test_a_stop_string_is_another_kind(client):
    [free] = client.complete(request(n=1, seed=5))
    word = f"w{free.token_ids[4]}"
    [sample] = client.complete(request(n=1, seed=5, stop=(word,)))
    assert (sample.stop_kind, sample.stop_reason) == ("stop_string", word)
    assert sample.token_ids == free.token_ids[: len(sample.token_ids)]


def test_a_prompt_too_long_for_its_answer_is_refused_before_it_is_sent(client):
    assert client.max_model_len == CONTEXT
    with pytest.raises(UserError, match="501 tokens and 12 new ones exceed the server's 512"):
        client.complete(request(prompt_ids=(5,) * 501, max_tokens=12))
    client.complete(request(prompt_ids=(5,) * 500, max_tokens=12, n=1))


def test_a_request_the_server_refuses_is_a_server_error_at_once(client):
    with pytest.raises(ServerError, match="HTTP 400"):
        client.complete(request(top_p=7.0))


def test_a_client_of_another_model_name_is_refused(client):
    stranger = ServerClient(client.base_url, model="sail-stranger", settings=SETTINGS)
    with pytest.raises(ServerError, match="not sail-stranger"):
        stranger.complete(request())
