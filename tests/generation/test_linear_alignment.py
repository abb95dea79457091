"""Linear Alignment: the steered distribution is the one worked out by hand, and the one that is recorded."""

from pathlib import Path

import pytest
import torch

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.core.records import Message, Prompt
from sail.core.run_settings import GenerationSettings
from sail.generation.engine import SampleRequest
from sail.generation.linear_alignment import aligned_logits, principled_ids
from sail.generation.transformers_engine import TransformersEngine
from sail.policy.chat import prompt_ids
from sail.policy.loading import load_policy
from tests.encoder_decoder_fixtures import make_tiny_t5
from tests.policy.oracle import plain_logits
from tests.policy.test_chat import tokenizer
from tests.serving_fixtures import make_tiny_policy

RHO, TOP_P = 1.5, 0.6
SETTINGS = GenerationSettings(
    engine="transformers", max_completion_length=6, temperature=0.5,
    linear_alignment={"principle": "w7 w8", "rho": RHO, "top_p": TOP_P},
)  # fmt: skip


def test_the_logits_are_those_worked_by_hand() -> None:
    """P(principled) = .5, .25, .125, .125: the first two reach .6; the rest may not be drawn."""
    principled = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    plain = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    found = aligned_logits(principled, plain, rho=1.0, top_p=0.6)
    log2 = torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(found[0, :2], torch.stack([2 * -log2 + 2 * log2, 2 * -2 * log2 + 2 * log2]))
    assert found[0, 2:].isneginf().all()
    hot = aligned_logits(principled, plain, rho=1.0, top_p=0.6, temperature=4.0)  # .31, .26, .22, .22: three of them
    assert hot[0].isfinite().sum() == 3 and torch.equal(hot[0, :2], found[0, :2])


def test_rho_0_and_top_p_1_are_the_principled_policy_itself() -> None:
    principled, plain = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(aligned_logits(principled, plain, rho=0.0, top_p=1.0), principled.double())


def test_a_banned_token_is_never_in_the_set() -> None:
    """With top_p 1 the rest's probability can round to less than 1, which would let it in as inf - inf."""
    principled, plain = torch.randn(2, 200, 30, generator=torch.Generator().manual_seed(0))
    principled[:, 3] = plain[:, 3] = -torch.inf
    found = aligned_logits(principled, plain, rho=2.0, top_p=1.0)
    assert not found.isnan().any() and found[:, 3].isneginf().all()


def test_the_likeliest_token_is_always_in_the_set() -> None:
    found = aligned_logits(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 0.0]]), rho=2.0, top_p=0.01)
    assert found.isfinite().tolist() == [[True, False]]


@pytest.fixture(scope="module", params=["causal", "encoder-decoder"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "model"
    if request.param == "causal":
        make_tiny_policy(path, seed=1, tied=False)
    else:
        make_tiny_t5(path, [f"w{index}" for index in range(40)], tied=False)
    return path


def _requests() -> list[SampleRequest]:
    """Of ids, with the principle in front; 1 is the T5's EOS and a word of the other."""
    turns = (Message(role="user", content="x"),)
    prompts = [(3, 4, 5, 1), (9, 1)]
    return [SampleRequest(Prompt(f"p-{ids}", turns, ids), 3, 100 * len(ids), (7, 8, *ids)) for ids in prompts]


@pytest.mark.parametrize("min_tokens", [0, 4])
def test_recorded_log_probs_are_those_of_the_steered_distribution(folder: Path, min_tokens: int) -> None:
    """Each step from two plain forwards of the whole row: the set, the combination, then the temperature."""
    engine, model = TransformersEngine(), load_policy(leaf(folder))
    engine.use(leaf(folder))
    requests, eos = _requests(), engine._eos
    for request, group in zip(requests, engine.sample(requests, SETTINGS.replace(min_tokens=min_tokens)), strict=True):
        for drawn in group:
            with torch.no_grad():
                steered, plain = (
                    plain_logits(model, ids, drawn.token_ids).double()
                    for ids in (request.principled_ids, request.prompt.token_ids)
                )
            for logits in (steered, plain):
                logits[:min_tokens, list(eos)] = -torch.inf
            for step, token in enumerate(drawn.token_ids):
                probabilities = (steered[step] / 0.5).softmax(-1)
                likelier = probabilities[probabilities > probabilities[token]].sum()
                assert likelier < TOP_P, "only tokens of the set are drawn"
                inside = [
                    v for v, p in enumerate(probabilities) if p > 0 and probabilities[probabilities > p].sum() < TOP_P
                ]
                combined = (1 + RHO) * steered[step, inside] - RHO * plain[step, inside]
                expected = torch.log_softmax(combined / 0.5, -1)[inside.index(token)]
                assert drawn.logprobs[step] == pytest.approx(float(expected), abs=1e-3)


def test_the_principle_changes_the_draws(folder: Path) -> None:
    engine = TransformersEngine()
    engine.use(leaf(folder))
    steered = engine.sample(_requests(), SETTINGS)
    assert steered == engine.sample(_requests(), SETTINGS)
    assert steered != engine.sample(_requests(), SETTINGS.replace(linear_alignment=None))


def test_the_principle_is_a_system_turn_behind_the_one_that_is_there() -> None:
    words = tokenizer("{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}")
    words.add_tokens(["system", "user"])
    system, user = Message(role="system", content="tea"), Message(role="user", content="at noon")

    def principled(*turns: Message) -> str:
        return words.decode(principled_ids(words, Prompt("p", turns, (4,)), "very good"))

    assert principled(user) == "system very good user at noon"
    assert principled(system, user) == "system tea very good user at noon"


def test_a_template_that_drops_system_turns_is_refused() -> None:
    words = tokenizer("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}")
    user = Message(role="user", content="at noon")
    with pytest.raises(UserError, match="leaves system turns out"):
        principled_ids(words, Prompt("p", (user,), prompt_ids(words, [user])), "very good")
