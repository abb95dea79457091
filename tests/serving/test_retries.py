"""Retries are bounded, and only what may pass is tried again: against a small real HTTP server that
misbehaves."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

import pytest

from sail.serving.chat import ChatEndpoint
from sail.serving.client import CompletionRequest, ServerClient, complete_over
from sail.serving.errors import AbandonedError, ServerError, ServerLostError
from tests.answering import Reply, answering
from tests.serving_fixtures import SETTINGS

QUICK = SETTINGS.replace(max_retries=2, concurrency=4, request_timeout_s=2.0)
REQUEST = CompletionRequest((1, 2, 3), n=1, seed=4, max_tokens=2)
GOOD = {
    "index": 0, "prompt_token_ids": [1, 2, 3], "token_ids": [8, 9], "finish_reason": "length",
    "stop_reason": None, "logprobs": {"token_logprobs": [-0.5, -0.25]},
}  # fmt: skip


@contextmanager
def misbehaving(*script: str | int, **choice: object) -> Iterator[tuple[ServerClient, list[dict]]]:
    """A client of a server that does what the script says ("drop", "hang", "abort", a status), then answers the
    choice."""
    steps, leaving = list(script), threading.Event()

    def complete(asked: dict) -> Reply:
        step = steps.pop(0) if steps else 200
        if step == "hang":
            leaving.wait(30.0)
        if step in ("drop", "hang"):
            return None
        if step == "abort":
            return 200, {"choices": [GOOD | choice | {"finish_reason": "abort"}]}
        return step, {"choices": [GOOD | choice]}

    with answering(complete, max_model_len=64) as (url, asked):
        try:
            yield ServerClient(url, model=None, settings=QUICK), asked
        finally:
            leaving.set()


@pytest.mark.parametrize("script", [("drop",), (500, "drop"), (503, 502), (429,)])
def test_what_may_pass_is_tried_again_with_the_same_seed(script):
    with misbehaving(*script) as (client, asked):
        [sample] = client.complete(REQUEST)
        assert sample.token_ids == (8, 9)
        assert len(asked) == len(script) + 1 and all(body == asked[0] for body in asked)


@pytest.mark.parametrize("step", ["drop", 500])
def test_retries_are_bounded(step):
    with misbehaving(*[step] * 50) as (client, asked):
        with pytest.raises(ServerError, match="failed 3 times"):
            client.complete(REQUEST)
        assert len(asked) == QUICK.max_retries + 1


def test_a_server_that_is_too_slow_is_sent_half_as_many_at_once_and_more_again_as_it_answers():
    leaving, at_once, count = threading.Event(), [], threading.Lock()
    hangs = [True] * QUICK.concurrency

    def complete(_: dict) -> Reply:
        if hangs and hangs.pop():
            leaving.wait(30.0)
            return None
        with count:
            at_once.append(at_once[-1] + 1 if at_once else 1)
        time.sleep(0.05)
        with count:
            at_once.append(at_once[-1] - 1)
        return 200, {"choices": [GOOD]}

    requests = [CompletionRequest((1, 2, 3), n=1, seed=number, max_tokens=2) for number in range(60)]
    with answering(complete, max_model_len=64) as (url, asked):
        client = ServerClient(url, model=None, settings=QUICK)
        try:
            assert len(list(client.complete_many(requests))) == 60
        finally:
            leaving.set()
    assert max(at_once[: QUICK.concurrency]) == QUICK.concurrency // 2
    assert max(at_once) == QUICK.concurrency
    assert len(asked) == 60 + QUICK.concurrency


def test_slow_is_not_called_dead():
    with misbehaving(*["hang"] * 9) as (client, _):
        hasty = ServerClient(client.base_url, model=None, settings=QUICK.replace(request_timeout_s=0.2, max_retries=1))
        cure = r"no answer within 0\.2 s \(vllm\.request_timeout_s\).*raise vllm\.request_timeout_s, or lower"
        with pytest.raises(ServerLostError, match=cure):
            hasty.complete(REQUEST)


def test_a_reload_has_the_time_of_a_start():
    def reload(_: dict) -> Reply:
        time.sleep(0.5)
        return 200, {"results": [{"version": "a"}]}

    with answering(reload, max_model_len=64) as (url, _):
        client = ServerClient(url, model=None, settings=QUICK.replace(request_timeout_s=0.2))
        assert client.collective_rpc("sail_reload") == [{"version": "a"}]
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s \(vllm\.request_timeout_s\)"):
            client.collective_rpc("sail_state")


@pytest.mark.parametrize("dated", [False, True])
def test_a_judge_that_limits_its_rate_is_given_the_time_it_asks_for(dated):
    asked_at = []

    def limited(_: dict) -> Reply:
        asked_at.append(time.monotonic())
        after = formatdate(time.time() + 2.0, usegmt=True) if dated else "1"  # a date has whole seconds
        return (200, {"choices": []}) if len(asked_at) == 2 else (429, {"error": "slowly"}, {"Retry-After": after})

    with answering(limited, max_model_len=64) as (url, _):
        assert list(ChatEndpoint(url, max_retries=1).ask_many([{}])) == [(0, {"choices": []})]
        assert asked_at[1] - asked_at[0] >= 0.9, "not after a quarter of a second"
        [(_, error)] = ChatEndpoint(url, max_retries=0).ask_many([{}])
    told = r"failed 1 times \(it limits its rate: lower concurrency or raise max_retries\), at last with .*HTTP 429"
    assert re.match(told, str(error))


def test_a_refusal_is_not_tried_again():
    with misbehaving(400) as (client, asked):
        with pytest.raises(ServerError, match="HTTP 400"):
            client.complete(REQUEST)
        assert len(asked) == 1


def test_nobody_listening_is_a_bounded_server_error():
    with misbehaving() as (client, _):
        assert client.max_model_len == 64
    with pytest.raises(ServerError, match="failed 3 times, at last with ConnectError"):
        client.complete(REQUEST)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt_token_ids": [1, 2]}, "sent prompt"),
        ({"token_ids": [8]}, "1 token ids but 2 log-probs"),
        ({"logprobs": {"token_logprobs": [-0.5, None]}}, "missing or not finite"),
        ({"token_ids": [8], "logprobs": {"token_logprobs": [-0.5]}}, "cut at 1 of 2 tokens"),
        ({"finish_reason": "repetition"}, "unknown finish reason"),
        ({"index": 1}, "asked for 1 samples"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_is_an_error(wrong, told):
    with misbehaving(**wrong) as (client, asked):
        with pytest.raises(ServerError, match=told):
            client.complete(REQUEST)
        assert len(asked) == 1


def test_an_aborted_sample_is_drawn_again():
    with misbehaving("abort") as (client, asked):
        [sample] = client.complete(REQUEST)
        assert (sample.stop_kind, len(asked)) == ("length", 2)


@pytest.mark.parametrize(("step", "most"), [(500, 3 + 4), ("drop", 3 + 4), (404, 4)])
def test_what_one_server_cannot_answer_another_does(step, most):
    """The failing one is sent what it has room for, then single requests, three failures in a row, and no more."""
    with misbehaving(*[step] * 500) as (bad, asked_bad), misbehaving() as (good, asked_good):
        requests = [CompletionRequest((1, 2, 3), n=1, seed=number, max_tokens=2) for number in range(200)]
        answers = list(complete_over([bad, good], requests, QUICK))
        assert sorted(position for position, _ in answers) == list(range(200))
        assert len(asked_good) == 200 and 1 <= len(asked_bad) <= most


def test_where_every_server_fails_the_error_names_them():
    told = r"HTTP 500.*RemoteProtocolError|RemoteProtocolError.*HTTP 500"
    with misbehaving(*[500] * 500) as (one, _), misbehaving(*["drop"] * 500) as (other, _):
        answers = complete_over([one, other], [REQUEST] * 20, QUICK)
        with pytest.raises(ServerLostError, match=told):
            list(answers)


def test_a_reader_that_stops_early_stops_the_requests():
    with misbehaving() as (client, asked):
        answers = client.complete_many([REQUEST] * 1000)
        next(answers)
        answers.close()
        assert len(asked) < 900


def test_another_thread_ends_requests_that_nobody_answers():
    stop, stopped_at = threading.Event(), []
    with misbehaving(*["hang"] * 20) as (client, asked):

        def stop_once_asked():
            while len(asked) < QUICK.concurrency:
                time.sleep(0.01)
            stopped_at.append(time.monotonic())
            stop.set()

        threading.Thread(target=stop_once_asked, daemon=True).start()
        patient = QUICK.replace(request_timeout_s=60.0)
        with pytest.raises(AbandonedError, match="0 of 20"):
            list(complete_over([client], [REQUEST] * 20, patient, stop))
        assert time.monotonic() - stopped_at[0] < 20, "not by the timeout"
    assert len(asked) == QUICK.concurrency
