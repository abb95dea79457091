"""The in-process engine draws what it says it draws, each draw from its own seed alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.core.records import Message, Prompt
from sail.core.run_settings import GenerationSettings
from sail.generation.engine import Drawn, SampleRequest
from sail.generation.stage import greedy
from sail.generation.transformers_engine import TransformersEngine, inverse_cdf, sampling_probabilities
from tests.policy.oracle import tiny_model
from tests.serving_fixtures import TinyPolicy, make_tiny_policy

SETTINGS = GenerationSettings(engine="transformers", max_completion_length=12)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> TinyPolicy:
    made = make_tiny_policy(tmp_path_factory.mktemp("policy") / "model", seed=1, tied=False)
    (made.path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return made


@pytest.fixture(scope="module")
def engine(policy: TinyPolicy) -> TransformersEngine:
    opened = TransformersEngine()
    opened.use(leaf(policy.path))
    return opened


def request(ids: tuple[int, ...], n: int = 2, seed: int = 100) -> SampleRequest:
    return SampleRequest(Prompt(f"p-{ids}", (Message(role="user", content="x"),), ids), n, seed)


REQUESTS = [request((5, 6, 7), seed=100), request((9,), seed=200), request((3, 4, 5, 6, 7, 8), seed=300)]


def ids_of(drawn: list[list[Drawn]]) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group] for group in drawn]


def test_log_probs_are_those_of_the_model(engine: TransformersEngine, policy: TinyPolicy) -> None:
    for req, group in zip(REQUESTS, engine.sample(REQUESTS, SETTINGS), strict=True):
        for drawn in group:
            expected = torch.tensor(policy.score(req.prompt.token_ids, drawn.token_ids))
            torch.testing.assert_close(torch.tensor(drawn.logprobs), expected, atol=1e-4, rtol=0)


def test_company_and_order_change_no_draw(engine: TransformersEngine) -> None:
    together = ids_of(engine.sample(REQUESTS, SETTINGS))
    alone = [ids_of(engine.sample([req], SETTINGS))[0] for req in REQUESTS]
    backwards = ids_of(engine.sample(REQUESTS[::-1], SETTINGS))[::-1]
    assert together == alone == backwards


def test_sample_i_has_seed_plus_i(engine: TransformersEngine) -> None:
    both = ids_of(engine.sample([request((5, 6, 7), n=2, seed=100)], SETTINGS))[0]
    second = ids_of(engine.sample([request((5, 6, 7), n=1, seed=101)], SETTINGS))[0]
    assert both[1] == second[0]


def test_greedy_draws_are_the_likeliest_tokens_whatever_the_seed(
    engine: TransformersEngine, policy: TinyPolicy
) -> None:
    settings = greedy(SETTINGS.replace(temperature=3.0, top_p=0.5, min_p=0.1))
    for req, group in zip(REQUESTS, engine.sample(REQUESTS, settings), strict=True):
        assert group[0].token_ids == group[1].token_ids and set(group[0].logprobs) == {0.0}
        likeliest = policy.logits(req.prompt.token_ids, group[0].token_ids).argmax(-1)
        assert group[0].token_ids == tuple(likeliest.tolist())


def test_a_response_ends_with_its_eos_or_at_the_limit(engine: TransformersEngine) -> None:
    drawn = [one for group in engine.sample([request((5,), n=200)], SETTINGS) for one in group]
    kinds = Counter(one.stop_kind for one in drawn)
    assert set(kinds) == {"eos", "length"}
    for one in drawn:
        assert (one.token_ids[-1] == 2) == (one.stop_kind == "eos")
        assert 2 not in one.token_ids[:-1]
        assert len(one.token_ids) <= 12


def test_stop_tokens_end_a_response_and_stay_in_it(engine: TransformersEngine) -> None:
    usual = engine.sample([request((5, 6, 7), n=1)], SETTINGS)[0][0].token_ids
    stopped = engine.sample([request((5, 6, 7), n=1)], SETTINGS.replace(stop_token_ids=(usual[1],)))[0][0]
    assert stopped.token_ids == usual[:2]
    assert stopped.stop_kind == "stop_token"


def test_draws_follow_the_distribution(engine: TransformersEngine, policy: TinyPolicy) -> None:
    count = 4000
    first = [one.token_ids[0] for one in engine.sample([request((5, 6), n=count)], SETTINGS)[0]]
    expected = policy.logits((5, 6), (0,)).softmax(-1)[0]
    observed = torch.bincount(torch.tensor(first), minlength=len(expected)) / count
    assert float((observed - expected).abs().sum()) < 0.25  # total variation of 4000 draws over 320 words


def test_processing_is_temperature_then_the_cuts() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    warm = sampling_probabilities(logits, SETTINGS.replace(temperature=2.0))
    torch.testing.assert_close(warm, torch.softmax(logits / 2, -1))
    top_two = sampling_probabilities(logits, SETTINGS.replace(top_k=2))
    torch.testing.assert_close(top_two[0, :2], torch.softmax(logits[0, :2], -1))
    assert float(top_two[0, 2:].sum()) == 0.0
    nucleus = sampling_probabilities(logits, SETTINGS.replace(top_p=0.7))
    assert (nucleus[0] > 0).tolist() == [True, True, False, False]  # .64, then .24 crosses .7
    floor = sampling_probabilities(logits, SETTINGS.replace(min_p=0.3))
    assert (floor[0] > 0).tolist() == [True, True, False, False]  # e^-1 = .37 of the best, e^-2 = .14


def test_new_weights_change_the_draws(policy: TinyPolicy, tmp_path: Path) -> None:
    other = make_tiny_policy(tmp_path / "other", seed=2, tied=True)
    (other.path / "chat_template.jinja").write_text("{{ messages }}")
    engine = TransformersEngine()
    engine.use(leaf(policy.path))
    before = ids_of(engine.sample(REQUESTS, SETTINGS))
    engine.use(leaf(other.path))
    assert ids_of(engine.sample(REQUESTS, SETTINGS)) != before
    engine.use(leaf(policy.path))
    assert ids_of(engine.sample(REQUESTS, SETTINGS)) == before


def test_a_policy_without_a_template_of_its_own_is_sampled(tmp_path: Path) -> None:
    """Prompts come as ids, made with the template of the run."""
    bare = make_tiny_policy(tmp_path, seed=1, tied=False)
    engine = TransformersEngine()
    engine.use(leaf(bare.path))
    assert len(engine.sample(REQUESTS, SETTINGS.replace(stop=("w5",)))) == 3


def test_a_stop_string_is_found_in_the_raw_text_and_not_before_min_tokens(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None  # min_tokens would ban it, and other tokens be drawn
    model.save_pretrained(tmp_path)
    engine, words = TransformersEngine(), {index: f"w{index}" for index in range(model.config.vocab_size)}

    def drawn(settings: GenerationSettings) -> Drawn:
        tokenizer = Tokenizer(WordLevel({word: index for index, word in words.items()}, unk_token="w0"))
        tokenizer.decoder = Fuse()  # words without blanks between them
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
        engine.use(leaf(tmp_path))
        return engine.sample([request((5, 6, 7), n=1)], settings)[0][0]

    usual = drawn(SETTINGS).token_ids
    words[usual[1]] = "\n\n"
    stopped = drawn(SETTINGS.replace(stop=("\n\n",)))
    assert (stopped.token_ids, stopped.stop_kind) == (usual[:2], "stop_string")
    later = drawn(SETTINGS.replace(stop=("\n\n",), min_tokens=2))
    assert (later.token_ids, later.stop_kind) == (usual[:3], "stop_string")


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_a_draw_is_where_the_distribution_reaches_it(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    probs = torch.randn(50, size, generator=draw).mul(3).softmax(-1)
    uniforms = np.random.default_rng(0).random(50)
    cdf = probs.double().cumsum(-1)
    expected = torch.searchsorted(cdf, torch.from_numpy(uniforms)[:, None] * cdf[:, -1:], right=True)
    assert inverse_cdf(probs, uniforms).tolist() == expected.squeeze(-1).tolist()


@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_a_token_that_was_cut_is_never_drawn(uniform: float) -> None:
    """Neither at the ends of the vocabulary nor at those of a block, whatever the sums round to."""
    probs = torch.zeros(2000, 300)
    probs[:, [3, 60, 130]] = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0))
    tokens = inverse_cdf(probs, np.full(2000, uniform))
    assert (probs.gather(-1, tokens[:, None]) > 0).all()


def test_probabilities_that_are_not_finite_are_the_users_to_cure() -> None:
    with pytest.raises(UserError, match="not finite"):
        inverse_cdf(torch.full((2, 70), torch.nan), np.array([0.1, 0.2]))
