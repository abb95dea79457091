"""Text to ids and back, and the chat template."""

from pathlib import Path
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from sail.policy.chat import prompt_ids, response_ids, response_text
from sail.testbed.chat import answered, asked
from sail.testbed.tokenizer import build_tokenizer
from sail.testbed.words import VOCABULARY
from sail.testbed.writers import CARELESS, all_prompts, write_review

PROMPT, REVIEW = "film in paris on monday", "the film was very good ."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """As a consumer has it: saved and loaded."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(128).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_one_word_is_one_token_and_every_id_decodes(tokenizer: PreTrainedTokenizerFast):
    assert len(tokenizer) == 128
    assert tuple(tokenizer.convert_ids_to_tokens(range(128))) == VOCABULARY
    assert tokenizer(REVIEW).input_ids == [VOCABULARY.index(word) for word in REVIEW.split()]


def test_the_template_renders_prompt_and_conversation_exactly(tokenizer: PreTrainedTokenizerFast):
    chat = asked(PROMPT)
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    conversation = tokenizer.apply_chat_template(chat + answered(REVIEW), tokenize=False)
    assert prompt == f"<bos> {PROMPT} <sep>"
    assert conversation == f"<bos> {PROMPT} <sep> {REVIEW} <eos>"


def test_prompt_response_and_end_concatenate_to_the_conversation(tokenizer: PreTrainedTokenizerFast):
    random = Random(0)
    for prompt in all_prompts(random)[:200]:
        review = write_review(prompt, CARELESS, random)
        head = tokenizer.apply_chat_template(asked(prompt), add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(asked(prompt) + answered(review), return_dict=False)
        assert head + tokenizer(review).input_ids + [tokenizer.eos_token_id] == whole


def test_there_is_one_bos_however_the_prompt_is_tokenized(tokenizer: PreTrainedTokenizerFast):
    text = tokenizer.apply_chat_template(asked(PROMPT), tokenize=False, add_generation_prompt=True)
    ways = [
        tokenizer.apply_chat_template(asked(PROMPT), add_generation_prompt=True, return_dict=False),
        tokenizer(text).input_ids,
        tokenizer(text, add_special_tokens=False).input_ids,
    ]
    assert all(ids == ways[0] and ids.count(tokenizer.bos_token_id) == 1 for ids in ways)


def test_response_ids_come_back_from_their_text(tokenizer: PreTrainedTokenizerFast):
    random = Random(0)
    bos_and_pad = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id}
    sayable = [token for token in range(128) if token not in bos_and_pad]
    for _ in range(200):
        ids = random.choices(sayable, k=random.randint(0, 24))
        text = tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True)
        assert tokenizer(text).input_ids == ids


def test_the_projects_own_chat_functions_agree(tokenizer: PreTrainedTokenizerFast):
    ids = response_ids(tokenizer, asked(PROMPT), REVIEW, [tokenizer.eos_token_id])
    assert list(ids) == [*tokenizer(REVIEW).input_ids, tokenizer.eos_token_id]
    assert response_text(tokenizer, ids) == REVIEW
    assert len(prompt_ids(tokenizer, asked(PROMPT))) == 7
