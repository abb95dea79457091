"""Samples of a policy at temperature 1, for the simulated human to compare."""

from collections.abc import Iterator, Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sail.core.records import Example, Message
from sail.core.seeds import SeedPart, derive_seed
from sail.testbed.chat import asked
from sail.testbed.settings import MAX_RESPONSE_TOKENS

_BATCH_SIZE = 500


def sample_responses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *stream: SeedPart
) -> list[Example]:
    """One sample per prompt, in order; the stream's name and the prompts decide every draw."""
    samples: list[Example] = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        batch = prompts[start : start + _BATCH_SIZE]
        samples += _sample_batch(model, tokenizer, batch, derive_seed(*stream, start))
    return samples


def _sample_batch(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], seed: int
) -> Iterator[Example]:
    chats = [asked(prompt) for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        ids = model.generate(**inputs, max_new_tokens=MAX_RESPONSE_TOKENS)  # type: ignore[misc]
    responses = ids[:, inputs["input_ids"].shape[1] :]
    for prompt, response in zip(prompts, responses, strict=True):
        text = str(tokenizer.decode(response, skip_special_tokens=True))
        yield Example((Message(role="user", content=prompt),), text, tokenizer.eos_token_id in response)
