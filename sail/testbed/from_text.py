"""A small chat model from conversations alone: a byte-level BPE tokenizer and a Llama of 3.8M parameters, from scratch.

The model speaks like its text and knows nothing; it is a real policy for runs on real preference data where no
pre-trained model can be had or afforded. Turns are marked by tokens that no text contains:

    [user]             ->  <|bos|> <|user|> What is rain? <|assistant|>                          (generation prompt)
    [user, assistant]  ->  <|bos|> <|user|> What is rain? <|assistant|> Water. <|eos|>

so ids(prompt) + ids(response) + [eos] are the ids of the conversation: BPE never merges across a mark.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sail.core.records import Message
from sail.core.seeds import derive_seed, permutation
from sail.core.settings import Settings, execution, meaning
from sail.policy.loading import quiet_loading

Conversation = Sequence[Message]

BOS, EOS, PAD, USER, ASSISTANT = "<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class TextModelSettings(Settings):
    """A tokenizer, a model and its training. Equal settings and texts give equal files on one machine type."""

    seed: int = meaning(0, "names every random stream", ge=0)
    vocab_size: int = meaning(4096, "tokens, marks included", ge=300)
    hidden_size: int = meaning(256, "a multiple of 64: heads are 32 wide, the least that vLLM runs on CPU", gt=0)
    intermediate_size: int = meaning(640, gt=0)
    num_hidden_layers: int = meaning(4, gt=0)
    context: int = meaning(512, "tokens the model can take", gt=0)
    train_length: int = meaning(320, "tokens of a training row; longer positions stay untrained", gt=0)
    batch_size: int = meaning(8, "rows of a step", gt=0)
    steps: int = meaning(400, "AdamW steps, about one a second on two cores", gt=0)
    learning_rate: float = meaning(3e-3, "peak: warm-up over a twentieth, then cosine to a tenth", gt=0)
    weight_decay: float = meaning(0.1, ge=0)
    log_interval_s: float = execution(10.0, gt=0)


def write_text_model(
    folder: Path,
    train: Sequence[Conversation],
    held_out: Sequence[Conversation],
    settings: TextModelSettings,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train on `train` and save model and tokenizer to `folder`; its figures, loss on `held_out` among them."""
    tokenizer = train_tokenizer(train, settings)
    model = new_model(tokenizer, settings)
    stream, unseen = token_stream(tokenizer, train), token_stream(tokenizer, held_out)
    figures: dict[str, float] = {
        "parameters": model.num_parameters(),
        "train_conversations": len(train), "train_tokens": len(stream),
        "tokens_seen": settings.steps * settings.batch_size * settings.train_length,
    }  # fmt: skip
    say(", ".join(f"{name} {value:,}" for name, value in figures.items()))
    started_s = time.monotonic()
    fit(model, stream, settings, say)
    figures["train_seconds"] = round(time.monotonic() - started_s)
    figures["held_out_loss"] = round(mean_loss(model, unseen, settings), 4)
    say(f"held-out loss {figures['held_out_loss']} nats a token, perplexity {math.exp(figures['held_out_loss']):.1f}")
    with quiet_loading():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return figures


def train_tokenizer(conversations: Sequence[Conversation], settings: TextModelSettings) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be written, and decoding gives back exactly what was encoded."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=settings.vocab_size, special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
        initial_alphabet=ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((turn["content"] for turns in conversations for turn in turns), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT], model_max_length=settings.context,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast, settings: TextModelSettings) -> LlamaForCausalLM:
    """Random weights, fp32, embeddings tied: a fifth of so small a model would else be a second vocabulary."""
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.hidden_size, intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers, head_dim=32, num_attention_heads=settings.hidden_size // 32,
        num_key_value_heads=settings.hidden_size // 64, max_position_embeddings=settings.context,
        tie_word_embeddings=True, dtype="float32", **marks,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "text model", "weights"))
        model = LlamaForCausalLM(config)
    # Said in full: generate() would otherwise cut to the 50 likeliest tokens, which is another policy.
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **marks)
    return model


def token_stream(tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]) -> Tensor:
    """All conversations after one another, [N] int64."""
    chats = [[{"role": turn["role"], "content": turn["content"]} for turn in turns] for turns in conversations]
    texts = [str(tokenizer.apply_chat_template(chat, tokenize=False)) for chat in chats]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return torch.tensor([token for row in rows for token in row], dtype=torch.int64)


def fit(model: LlamaForCausalLM, stream: Tensor, settings: TextModelSettings, say: Callable[[str], None]) -> None:
    """Next-token loss on rows cut from the stream; AdamW (.9, .95), gradients clipped at norm 1."""
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
    model.train()
    said_s, recent = time.monotonic(), []
    for step, rows in zip(range(settings.steps), _batches(stream, settings), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if step + 1 == settings.steps or time.monotonic() - said_s > settings.log_interval_s:
            say(f"step {step + 1} of {settings.steps}, loss {sum(recent) / len(recent):.3f}")
            said_s, recent = time.monotonic(), []
    model.eval()


def mean_loss(model: LlamaForCausalLM, stream: Tensor, settings: TextModelSettings, max_rows: int = 200) -> float:
    """Mean of -log p(token | the tokens before it in its row), nats; nan for a stream shorter than a row."""
    rows = _rows(stream, settings.train_length)[:max_rows]
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None], use_cache=False).loss.item() for row in rows]
    return sum(losses) / len(losses) if losses else math.nan


def _batches(stream: Tensor, settings: TextModelSettings) -> Iterator[Tensor]:
    """[batch_size, train_length] for ever; no row returns before all were seen."""
    rows = _rows(stream, settings.train_length)
    order = (index for epoch in range(settings.steps) for index in permutation(len(rows), settings.seed, "rows", epoch))
    while True:
        yield torch.stack([rows[next(order)] for _ in range(settings.batch_size)])


def _rows(stream: Tensor, length: int) -> Tensor:
    return stream[: len(stream) // length * length].reshape(-1, length)


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
