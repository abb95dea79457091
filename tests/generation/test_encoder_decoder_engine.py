"""A T5 sampled in process: its prompts encoded once, its draws and log-probs those of the trainer's model."""

from pathlib import Path

import pytest
import torch

from sail.core.artifacts import leaf
from sail.core.records import Message, Prompt
from sail.core.run_settings import GenerationSettings
from sail.generation.engine import Drawn, SampleRequest
from sail.generation.transformers_engine import TransformersEngine
from sail.policy.loading import load_policy
from sail.policy.logprobs import token_logps
from sail.policy.rows import Row
from tests.encoder_decoder_fixtures import EOS_ID, make_tiny_t5
from tests.policy.oracle import plain_logits

SETTINGS = GenerationSettings(engine="transformers", max_completion_length=12)
WORDS = [f"w{index}" for index in range(40)]


@pytest.fixture(scope="module", params=[True, False], ids=["T5", "T5 v1.1"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5") / "model"
    make_tiny_t5(path, WORDS, tied=request.param)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    opened = TransformersEngine()
    opened.use(leaf(folder))
    return opened


def _request(ids: tuple[int, ...], n: int = 3, seed: int = 100) -> SampleRequest:
    return SampleRequest(Prompt(f"p-{ids}", (Message(role="user", content="x"),), ids), n, seed)


REQUESTS = [_request((5, 6, 7, 1)), _request((9, 1), n=1, seed=200), _request((3, 4, 5, 6, 7, 8, 1), seed=300)]


def _ids(drawn: list[list[Drawn]]) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group] for group in drawn]


def test_recorded_log_probs_are_the_trainer_s(engine: TransformersEngine, folder: Path) -> None:
    model = load_policy(leaf(folder))
    drawn = engine.sample(REQUESTS, SETTINGS)
    rows = [Row(r.prompt.token_ids, one.token_ids) for r, group in zip(REQUESTS, drawn, strict=True) for one in group]
    recorded = torch.tensor([logp for group in drawn for one in group for logp in one.logprobs])
    with torch.no_grad():
        torch.testing.assert_close(recorded, token_logps(model, rows).logps, atol=1e-4, rtol=0)


def test_company_and_order_change_no_draw(engine: TransformersEngine) -> None:
    together = _ids(engine.sample(REQUESTS, SETTINGS))
    alone = [_ids(engine.sample([request], SETTINGS))[0] for request in REQUESTS]
    assert together == alone == _ids(engine.sample(REQUESTS[::-1], SETTINGS))[::-1]


def test_a_prompt_is_encoded_once_for_all_its_samples(folder: Path) -> None:
    engine, encoded, decoded = TransformersEngine(), [], []
    engine.use(leaf(folder))
    engine._model.encoder.register_forward_hook(lambda module, args, output: encoded.append(len(output[0])))
    engine._model.decoder.register_forward_hook(lambda module, args, output: decoded.append(output[0].shape[:2]))
    engine.sample(REQUESTS, SETTINGS)
    assert encoded == [3]
    assert decoded[0] == (3, 1) and set(decoded[1:]) == {(7, 1)}  # one token at a time, behind the cache


def test_a_response_ends_with_its_eos_or_at_the_limit(engine: TransformersEngine) -> None:
    requests = [_request((word, 1), n=20) for word in range(4, 40)]
    drawn = [one for group in engine.sample(requests, SETTINGS) for one in group]
    assert {one.stop_kind for one in drawn} == {"eos", "length"}
    for one in drawn:
        assert (one.token_ids[-1] == EOS_ID) == (one.stop_kind == "eos")
        assert EOS_ID not in one.token_ids[:-1]


def test_draws_follow_the_distribution(engine: TransformersEngine, folder: Path) -> None:
    count = 4000
    first = [one.token_ids[0] for one in engine.sample([_request((5, 6, 1), n=count)], SETTINGS)[0]]
    with torch.no_grad():
        expected = plain_logits(load_policy(leaf(folder)), (5, 6, 1), (0,)).softmax(-1)[0]
    observed = torch.bincount(torch.tensor(first), minlength=len(expected)) / count
    assert float((observed - expected).abs().sum()) < 0.1
