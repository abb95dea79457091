"""Conversations to token ids and back, once: nothing sampled is ever tokenised again."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sail.core.errors import UserError
from sail.core.records import Message

_NO_KWARGS: Mapping[str, Any] = {}


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    kwargs: Mapping[str, Any] = _NO_KWARGS,
    tag: str = "",
) -> tuple[int, ...]:
    """Ids of a conversation up to and including the generation prompt, with one BOS where the model has one.

    kwargs are the template's own (RunSettings.chat_template_kwargs); tag is text after the generation prompt,
    tokenised together with it (conditional alignment).
    """
    ids = _encode(tokenizer, _render(tokenizer, messages, kwargs, add_generation_prompt=True) + tag)
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        raise UserError(
            "the chat template gives two BOS tokens", where="chat_template", cure="Write bos_token once in the template"
        )
    return ids


def response_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    response: str,
    eos: Sequence[int],
    kwargs: Mapping[str, Any] = _NO_KWARGS,
) -> tuple[int, ...]:
    """Ids of a written response as the policy would have sampled it: the content, then one EOS.

    The template renders prompt and response together and the prompt's text is cut off, so that template marks around
    the response are kept; what a template writes after EOS (Qwen's newline) is not, a sampler stops before it.
    """
    before = _render(tokenizer, messages, kwargs, add_generation_prompt=True)
    answered = [*messages, Message(role="assistant", content=response)]
    whole = _render(tokenizer, answered, kwargs, add_generation_prompt=False)
    tail = whole[len(before) :] if whole.startswith(before) else response
    ids = _encode(tokenizer, tail)
    end = next((position for position, token in enumerate(ids) if token in eos), None)
    if end is not None:
        return ids[: end + 1]
    return (*ids, tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else ids


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """The text people, judges and reward models read."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    kwargs: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, add_generation_prompt=add_generation_prompt, tokenize=False, **kwargs
        )
        return str(text)
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise UserError(
            f"the chat template refuses a conversation of {roles}: {error}", where="chat_template",
            cure="Mend that row of the data, or set chat_template: to a file with a template that takes it",
        ) from error  # fmt: skip


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """verbose=False: that a row is longer than the context is for the caller to say, who drops or refuses it."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
