"""Conversations become ids once: one BOS, one EOS, and the ids a sampler would have drawn."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from sail.core.errors import UserError
from sail.core.records import Message
from sail.policy.chat import prompt_ids, response_ids, response_text

WORDS = ["<pad>", "<bos>", "<eos>", "<user>", "<bot>", "<nl>", "tea", "at", "noon", "good", "very", "."]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %} <user> {{ m.content }}"
    "{% else %} <bot> {{ m.content }} <eos> <nl>{% endif %}{% endfor %}{% if add_generation_prompt %} <bot>{% endif %}"
)
PROMPT = [Message(role="user", content="tea at noon")]


def tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = template
    return fast


def words(ids: tuple[int, ...]) -> str:
    return " ".join(WORDS[index] for index in ids)


def test_a_prompt_has_one_bos_and_ends_with_the_generation_prompt() -> None:
    assert words(prompt_ids(tokenizer(), PROMPT)) == "<bos> <user> tea at noon <bot>"


def test_two_bos_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="two BOS"):
        prompt_ids(tokenizer("{{ bos_token }} " + TEMPLATE), PROMPT)


def test_a_written_response_ends_at_its_eos_whatever_the_template_adds_behind() -> None:
    assert words(response_ids(tokenizer(), PROMPT, "very good .", eos=(2,))) == "very good . <eos>"


def test_a_template_without_eos_gets_one() -> None:
    plain = "{% for m in messages %} {{ m.content }}{% endfor %}"
    assert words(response_ids(tokenizer(plain), PROMPT, "good", eos=(2,))) == "good <eos>"


def test_a_template_that_rewrites_the_prompt_falls_back_to_the_text_itself() -> None:
    rewriting = "{{ messages | length }} {% for m in messages %} {{ m.content }}{% endfor %}"
    assert words(response_ids(tokenizer(rewriting), PROMPT, "good .", eos=(2,))) == "good . <eos>"


def test_text_for_people_has_no_special_tokens() -> None:
    assert response_text(tokenizer(), (10, 9, 11, 2)) == "very good ."


SWITCHED_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    " <{{ 'nl' if m.role == 'system' else 'user' if m.role == 'user' else 'bot' }}> {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} <bot>{% if not thinking|default(true) %} .{% endif %}{% endif %}"
)


def test_system_prompts_and_earlier_turns_are_part_of_the_prompt_once() -> None:
    turns = [("system", "very good"), ("user", "tea"), ("assistant", "noon"), ("user", "at noon")]
    messages = [Message(role=role, content=content) for role, content in turns]
    ids = prompt_ids(tokenizer(SWITCHED_TEMPLATE), messages)
    assert words(ids) == "<bos> <nl> very good <user> tea <bot> noon <user> at noon <bot>"


def test_the_templates_own_switches_reach_the_prompt() -> None:
    assert words(prompt_ids(tokenizer(SWITCHED_TEMPLATE), PROMPT)) == "<bos> <user> tea at noon <bot>"
    off = prompt_ids(tokenizer(SWITCHED_TEMPLATE), PROMPT, {"thinking": False})
    assert words(off) == "<bos> <user> tea at noon <bot> ."
