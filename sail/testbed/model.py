"""The policy to align: a Llama of 0.12M parameters, pre-trained on careless reviews and tuned on careful ones."""

from collections.abc import Iterable, Iterator
from random import Random

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sail.core.seeds import derive_seed
from sail.testbed.chat import answered, asked
from sail.testbed.settings import MAX_POSITIONS, MAX_RESPONSE_TOKENS, BuildSettings
from sail.testbed.writers import CARELESS, write_review

Row = tuple[str, str]  # prompt, review
_IGNORED = -100  # a label the Hugging Face loss skips


def train_policy(
    settings: BuildSettings, tokenizer: PreTrainedTokenizerFast, prompts: list[str], demonstrations: list[Row]
) -> LlamaForCausalLM:
    """The SFT model: two runs of next-token training on the reviews, not on the prompts."""
    model = new_model(settings, tokenizer)
    careless = _careless_batches(settings, prompts)
    careful = _demonstration_batches(settings, demonstrations)
    fit(model, _encoded(tokenizer, careless), settings.pretrain_steps, settings.pretrain_learning_rate)
    fit(model, _encoded(tokenizer, careful), settings.sft_steps, settings.sft_learning_rate)
    return model.eval()


def new_model(settings: BuildSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, fp32. Heads are 32 wide: the smallest that vLLM runs on CPU."""
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.125,  # 1/sqrt(64): at the usual 0.02 so small a model does not learn to copy the topic
        tie_word_embeddings=settings.tie,
        dtype="float32",
        **marks,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "testbed", "weights"))
        model = LlamaForCausalLM(config)
    # Said in full, because generate() otherwise cuts to the 50 likeliest tokens, and that is another policy.
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **marks)
    return model


def fit(model: LlamaForCausalLM, batches: Iterator[dict[str, torch.Tensor]], num_steps: int, peak: float) -> None:
    """AdamW with a warm-up of a tenth of the steps, then cosine to zero; gradients clipped at norm 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, num_steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, num_steps - warmup)),
        ],
        milestones=[warmup],
    )
    model.train()
    for _, batch in zip(range(num_steps), batches, strict=False):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def _careless_batches(settings: BuildSettings, prompts: list[str]) -> Iterator[list[Row]]:
    random = Random(derive_seed(settings.seed, "testbed", "pretrain"))
    while True:
        asked_now = random.choices(prompts, k=settings.batch_size)
        yield [(prompt, write_review(prompt, CARELESS, random)) for prompt in asked_now]


def _demonstration_batches(settings: BuildSettings, rows: list[Row]) -> Iterator[list[Row]]:
    random = Random(derive_seed(settings.seed, "testbed", "sft"))
    while True:
        yield random.choices(rows, k=settings.batch_size)


def _encoded(tokenizer: PreTrainedTokenizerFast, batches: Iterable[list[Row]]) -> Iterator[dict[str, torch.Tensor]]:
    for rows in batches:
        yield encode_batch(tokenizer, rows)


def encode_batch(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, each [rows, longest], padded on the right.

    A review longer than the response limit is cut, its EOS with it: the policy too is cut there when it samples.
    """
    texts = tokenizer.apply_chat_template([asked(p) + answered(r) for p, r in rows], tokenize=False)
    prompts = tokenizer.apply_chat_template([asked(p) for p, _ in rows], tokenize=False, add_generation_prompt=True)
    ids, prompt_ids = tokenizer(texts).input_ids, tokenizer(prompts).input_ids
    ids = [row[: len(head) + MAX_RESPONSE_TOKENS] for row, head in zip(ids, prompt_ids, strict=True)]
    labels = [[_IGNORED] * len(head) + row[len(head) :] for row, head in zip(ids, prompt_ids, strict=True)]
    return {
        "input_ids": _padded(ids, int(tokenizer.pad_token_id)),
        "attention_mask": _padded([[1] * len(row) for row in ids], 0),
        "labels": _padded(labels, _IGNORED),
    }


def _padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
