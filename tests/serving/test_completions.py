"""Stop kinds, and what a request refuses to be."""

import pytest

from sail.serving.completions import CompletionRequest, read_completions, request_body
from sail.serving.errors import ServerError

REQUEST = CompletionRequest((1, 2), n=1, seed=0, max_tokens=3)


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason", "kind"),
    [
        ("stop", None, "eos"),
        ("stop", 7, "eos"),  # a second EOS id of the model
        ("stop", 9, "stop_token"),
        ("stop", "###", "stop_string"),
        ("length", None, "length"),
        ("abort", None, "abort"),
    ],
)
def test_stop_kinds(finish_reason, stop_reason, kind):
    choice = {
        "index": 0, "prompt_token_ids": [1, 2], "token_ids": [4, 5, 2], "finish_reason": finish_reason,
        "stop_reason": stop_reason, "logprobs": {"token_logprobs": [-1.0, -2.0, -0.5]},
    }  # fmt: skip
    [sample] = read_completions({"choices": [choice]}, REQUEST, frozenset({2, 7}))
    assert sample.stop_kind == kind
    if kind == "eos" and stop_reason is None:
        with pytest.raises(ServerError, match=r"ended with token 2, the policy's EOS ids are \[7\]"):
            read_completions({"choices": [choice]}, REQUEST, frozenset({7}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_ids": ()},
        {"n": 0},
        {"max_tokens": 0},
        {"seed": -1},
        {"seed": (1 << 63) - 1, "n": 2},
    ],
)
def test_a_request_that_cannot_be_drawn_is_refused(wrong):
    fields = {"prompt_ids": (1,), "n": 1, "seed": 0, "max_tokens": 1} | wrong
    with pytest.raises(ValueError, match=r"prompt|positive|2\*\*63"):
        CompletionRequest(**fields)


def test_every_sampling_parameter_is_sent_so_that_no_generation_config_sets_it():
    body = request_body(REQUEST, "m", frozenset({2}))
    assert {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"} <= set(body)
    assert body["repetition_penalty"] == 1.0 and "cache_salt" not in body
