"""A model whose attention caps its scores keeps the cap wherever we load it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2ForSequenceClassification

from sail.core.artifacts import leaf
from sail.labeling.reward_model import load_reward_model, new_reward_model
from sail.policy.loading import load_policy
from sail.policy.logprobs import token_logps
from sail.policy.rows import Row
from sail.policy.value import new_value_model
from tests.policy.oracle import SIZES
from tests.serving_fixtures import word_tokenizer

ROWS = [Row((5, 6, 7, 9, 11), (8, 9, 12, 2)), Row((5, 6), (10, 2))]
IDS = [[*prompt, *response] for prompt, response in ROWS]


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 2 whose scores are mostly above the cap; as a classifier too."""
    folder = tmp_path_factory.mktemp("gemma2")
    torch.manual_seed(3)
    sizes = SIZES | {"vocab_size": 320, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 1, "num_labels": 1}
    model = Gemma2ForSequenceClassification(Gemma2Config(**sizes))
    model.save_pretrained(folder / "classifier")
    language = Gemma2ForCausalLM(model.config)
    language.model.load_state_dict(model.model.state_dict())
    language.save_pretrained(folder / "language")
    for kind in ("classifier", "language"):
        word_tokenizer().save_pretrained(folder / kind)
    return folder


def plain_logps(folder: Path, attention: str) -> Tensor:
    """Of every response token, from a forward of each row alone."""
    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation=attention)
    found = []
    for row, ids in zip(ROWS, IDS, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0, len(row.prompt_ids) - 1 : -1]
        found.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(row.response_ids)[:, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def test_log_probs_of_a_loaded_policy_have_the_cap(capped: Path) -> None:
    expected = plain_logps(capped / "language", "eager")
    assert (plain_logps(capped / "language", "sdpa") - expected).abs().max() > 0.01  # the cap bites, and sdpa drops it
    found = token_logps(load_policy(leaf(capped / "language")), ROWS).logps
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_value_networks_and_reward_models_have_it_too(capped: Path) -> None:
    eager = Gemma2ForSequenceClassification.from_pretrained(capped / "classifier", attn_implementation="eager")
    rewards = torch.stack([eager(input_ids=torch.tensor([ids])).logits[0, 0] for ids in IDS])
    for load in (load_reward_model(capped / "classifier", "here"), new_reward_model(capped / "classifier", 0, "here")):
        torch.testing.assert_close(load.rewards(IDS).cpu(), rewards, rtol=0, atol=1e-5)
    value = new_value_model(leaf(capped / "language"), "token")
    value.head.weight.fill_(1.0)
    states = [eager.model(input_ids=torch.tensor([ids])).last_hidden_state[0].sum(-1) for ids in IDS]
    values = [sums[len(row.prompt_ids) - 1 : -1] for row, sums in zip(ROWS, states, strict=True)]
    torch.testing.assert_close(value(ROWS).float(), torch.cat(values), rtol=0, atol=1e-4)
