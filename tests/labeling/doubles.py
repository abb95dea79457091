"""Small real things the labeling tests run on: a tokenizer, a two-layer Llama, groups of responses."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sail.core.records import (
    Message,
    Prompt,
    Sample,
    SampleGroup,
    StopKind,
    content_hash,
)

MARKS = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")
ADJECTIVES = ("good", "great", "lovely", "bad", "dull", "awful")
WORDS = ("film", "book", "meal", "song", "the", "was", "and", ".", "user:", "assistant:", *ADJECTIVES)
VOCABULARY = (*MARKS, *WORDS)
CONTEXT = 64
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' <sep> ' + m['content'] + ' <eos>' }}"
    "{% else %}{{ ' ' + m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' <sep>' }}{% endif %}"
)


def tiny_tokenizer(*, template: bool = True) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    if template:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_policy(folder: Path, seed: int = 0) -> Path:
    """A random causal language model on disk."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.index(word) if word in VOCABULARY else 4 for word in text.split())


def make_prompt(text: str) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(f"p-{content_hash(messages)}", messages, (1, *ids_of(text), 3))


def make_sample(response_id: str, text: str, stop_kind: StopKind = "eos") -> Sample:
    origin = "data:prefs" if stop_kind == "dataset" else "policy"
    end = (2,) if stop_kind in ("eos", "dataset") else ()
    return Sample(response_id, origin, text, (*ids_of(text), *end), (), stop_kind, "v0", 0)


def make_group(prompt_text: str, *texts: str, stop_kind: StopKind = "eos") -> SampleGroup:
    """Sample i has the id <prompt id>-<i>."""
    prompt = make_prompt(prompt_text)
    samples = [make_sample(f"{prompt.prompt_id}-{index}", text, stop_kind) for index, text in enumerate(texts)]
    return SampleGroup(prompt, tuple(samples))
