"""A reward model as a labeler: its own template, its own head, its own limits."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sail.core.errors import UserError
from sail.core.records import Example, ScoredGroup
from sail.core.run_settings import RewardModelLabeler
from sail.core.store import Store
from sail.labeling.labelers.reward_model import score_examples
from sail.labeling.reward_model import load_reward_model
from sail.labeling.scores import make_labeler, score_responses

from .doubles import make_group, tiny_tokenizer
from .stored import write_groups

GROUPS = [make_group(f"{word} film", "good", "the film was bad .") for word in ("film", "book", "meal", "song", "the")]


@pytest.fixture(scope="module")
def reward_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=1)
    model.score.weight.data *= 50
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(folder)
    return folder


def test_a_reward_model_scores_the_whole_conversation_by_its_own_template(store: Store, reward_folder: Path) -> None:
    labeler = make_labeler("rm", RewardModelLabeler(path=str(reward_folder), batch_size=3))
    scored = score_responses(store, write_groups(store, GROUPS), labeler).read(ScoredGroup, "scores")
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    for group, row in zip(GROUPS, scored, strict=True):
        for sample, score in zip(group.samples, row.scores, strict=True):
            text = f"<bos> {group.prompt.messages[0]['content']} <sep> {sample.text} <eos>"
            alone = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits.item()
            assert score == pytest.approx(alone, abs=1e-5)
    assert len({score for row in scored for score in row.scores}) > 5


def test_scores_do_not_hang_on_batch_or_company(reward_folder: Path) -> None:
    model = load_reward_model(reward_folder, "labelers.rm.path")
    examples = [Example(GROUPS[0].prompt.messages, "good " * length, True) for length in (1, 9, 4, 2)]
    one, all_ = score_examples(model, examples, 1), score_examples(model, examples, 8)
    assert one == pytest.approx(all_, abs=1e-5)
    assert score_examples(model, examples[::-1], 8)[::-1] == all_
    assert score_examples(model, [], 8) == []


def test_a_tokenizer_without_a_template_gets_the_plain_rendering(reward_folder: Path) -> None:
    model = load_reward_model(reward_folder, "")
    model.tokenizer.chat_template = None
    ids = model.encode(Example(GROUPS[0].prompt.messages, "good .", True))
    assert ids == list(tiny_tokenizer()("user: film film assistant: good .")["input_ids"])


def test_a_conversation_beyond_the_context_is_refused(reward_folder: Path) -> None:
    model = load_reward_model(reward_folder, "")
    long = Example(GROUPS[0].prompt.messages, "good " * 80, True)
    with pytest.raises(UserError, match="has 85 tokens, the reward model's context is 64"):
        score_examples(model, [long], 8)


def test_a_language_model_is_no_reward_model(store: Store, policy_folder: Path) -> None:
    labeler = make_labeler("rm", RewardModelLabeler(path=str(policy_folder)))
    with pytest.raises(UserError, match=r"labelers\.rm\.path: .* is no reward model: it lacks score"):
        score_responses(store, write_groups(store, GROUPS), labeler)


def test_a_classifier_with_two_outputs_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=2).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 2 outputs"):
        load_reward_model(tmp_path, "labelers.rm.path")


def test_a_missing_model_names_its_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labelers\.rm\.path"):
        make_labeler("rm", RewardModelLabeler(path=str(tmp_path / "nowhere")))
